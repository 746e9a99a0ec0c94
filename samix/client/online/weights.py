"""Weights on their way to the server, beside the training: a thread sends the newest, older ones are left out."""

import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import grpc
from torch import Tensor

from samix.client.online.observer import OnlineObserver
from samix.client.online.session import OnlineSession
from samix.cotraining.wire import CHUNK_BYTES, SERVICE, Shapes, WeightKind, pack_weights, weights_header
from samix.errors import MixerCancelled, MixerError, WrongState
from samix.framing import as_bytes, chunks, join
from samix.mixer.v1 import online_pb2 as pb
from samix.status import from_rpc_error

log = logging.getLogger(__name__)

_TIMEOUT_S = 30.0
"""Longest one transfer may take, seconds."""
_PAUSE_S = 0.5
"""Between two attempts, seconds."""
_JOIN_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Snapshot:
    step: int
    kind: WeightKind
    data: Tensor
    """uint8 [bytes], on the CPU; nobody writes to it."""


class WeightSender:
    """Sends weights of rank 0. `start`, then `close`; `offer` copies, and does not wait for the network."""

    def __init__(self, session: OnlineSession, shapes: Shapes, observer: OnlineObserver) -> None:
        self._session = session
        self._shapes = shapes
        self._observer = observer
        self._changed = threading.Condition()
        self._newest: _Snapshot | None = None  # kept when it has arrived: a server that is back may need it again
        self._has_arrived = False
        self._is_closed = False
        self._is_failing = False
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._run, name="weight-sender", daemon=True)

    def start(self) -> None:
        """Send from now on."""
        self._thread.start()

    def close(self) -> None:
        """Send no more; what is on its way is cut off."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            call = self._call
        if call is not None:
            call.cancel()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)

    def offer(self, step: int, weights: Mapping[str, Tensor], kind: WeightKind) -> None:
        """Send these weights soon, in place of those that still wait.

        Args:
            step: steps that were done.
            weights: of the classifier, by the names of its state; they are copied.
            kind: how they travel.
        """
        snapshot = _Snapshot(step=step, kind=kind, data=pack_weights(weights, list(self._shapes), kind))
        with self._changed:
            self._newest, self._has_arrived = snapshot, False
            self._changed.notify_all()

    def send_again(self) -> None:
        """Send the newest weights again: the server has lost them."""
        with self._changed:
            self._has_arrived = False
            self._changed.notify_all()

    def wait_sent(self, timeout_s: float) -> bool:
        """Wait until the newest weights have arrived; False if that takes too long."""
        with self._changed:
            return self._changed.wait_for(lambda: self._has_arrived, timeout_s)

    def _run(self) -> None:
        while (snapshot := self._next()) is not None:
            try:
                self._send(snapshot)
                is_done = True
            except WrongState:  # the server has newer ones, after all
                is_done = True
            except MixerError as error:
                is_done = False
                self._note_failure(snapshot, error)
            with self._changed:
                self._has_arrived |= is_done and self._newest is snapshot
                self._changed.notify_all()
                if not is_done and not self._is_closed:
                    self._changed.wait(_PAUSE_S)

    def _next(self) -> _Snapshot | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or (self._newest is not None and not self._has_arrived))
            return None if self._is_closed else self._newest

    def _send(self, snapshot: _Snapshot) -> None:
        started_s = time.monotonic()
        line = self._session.connection.line()
        header = weights_header(self._session.key.message(), self._shapes, step=snapshot.step, kind=snapshot.kind)
        bulk = as_bytes(snapshot.data.numpy())
        header.sha256 = hashlib.sha256(bulk).digest()
        method = line.channel.stream_unary(f"/{SERVICE}/SendWeights")
        try:
            call = method.future(_messages(header, bulk), timeout=_TIMEOUT_S, metadata=line.metadata)
            with self._changed:
                self._call = call
                if self._is_closed:
                    call.cancel()
            call.result()
        except grpc.RpcError as error:
            raise from_rpc_error(error, line.target) from error
        except (grpc.FutureCancelledError, ValueError) as error:  # closed
            raise MixerCancelled("the connection was closed") from error
        finally:
            with self._changed:
                self._call = None
        self._observer.weights_sent(len(bulk), time.monotonic() - started_s)
        if self._is_failing:
            log.info("weights_arrive_again", extra={"step": snapshot.step})
            self._is_failing = False

    def _note_failure(self, snapshot: _Snapshot, error: MixerError) -> None:
        if self._is_closed:
            return
        self._observer.weights_failed()
        if not self._is_failing:
            log.warning("weights_not_sent", extra={"step": snapshot.step, "reason": str(error)})
        self._is_failing = True


def _messages(header: pb.WeightsHeader, bulk: memoryview) -> Iterator[bytes]:
    message = pb.SendWeightsRequest(header=header)
    for chunk in chunks(bulk, CHUNK_BYTES):
        yield join(message, chunk)
        message = pb.SendWeightsRequest()
