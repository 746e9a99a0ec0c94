"""Calls spread over the replicas of a mixer by turns; one that fails is left out until it answers again.

A replica that is out costs no mix anything: whether it is back is asked by small calls of its own. While all are out,
they are called by turns like before, so that one that is alone is called always.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from samix.client.channel import Connection, Method
from samix.errors import MixerCancelled
from samix.mixer.v1 import mixer_pb2 as pb

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
PROBE_TIMEOUT_S = 2.0

_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(kw_only=True, slots=True, eq=False)
class _Replica:
    connection: Connection
    is_up: bool = True
    is_probed: bool = False
    pause_s: float = FIRST_PAUSE_S
    """Before it is asked whether it is back, seconds."""
    probe_at_s: float = 0.0


class Replicas:
    """Connections to servers of the same mixer. Safe for threads; pickles as fresh connections."""

    def __init__(self, connections: Sequence[Connection], clock: Callable[[], float] = time.monotonic) -> None:
        self._replicas = [_Replica(connection=connection) for connection in connections]
        self._clock = clock
        self._lock = threading.Lock()
        # Ranks that start together begin at different replicas. SystemRandom leaves the seeded generators alone.
        self._turn = random.SystemRandom().randrange(len(connections))

    def __reduce__(self) -> tuple:
        return Replicas, ([replica.connection for replica in self._replicas],)

    @property
    def target(self) -> str:
        """All addresses, for messages."""
        return ",".join(replica.connection.target for replica in self._replicas)

    def check_process(self) -> None:
        """Refuse to be used by a fork of the process that opened a channel.

        Raises:
            InputError: if this process is one.
        """
        for replica in self._replicas:
            replica.connection.check_process()

    def start(self, method: Method, request: Message, timeout_s: float) -> grpc.Future:
        """Send `request` to the replica whose turn it is; see `Connection.start`.

        Where others could take over it gets half of the time only.
        """
        self.check_process()  # before the lock, which the parent may have held at the fork
        if len(self._replicas) == 1:
            return self._replicas[0].connection.start(method, request, timeout_s)
        self._probe()
        replica, has_other = self._next()
        # One that hangs is left while there is time for another.
        attempt = replica.connection.start(method, request, timeout_s / 2 if has_other else timeout_s)
        attempt.add_done_callback(partial(self._note, replica))
        return attempt

    def close(self) -> None:
        """End all connections; calls under way end as cancelled."""
        for replica in self._replicas:
            replica.connection.close()

    def _next(self) -> tuple[_Replica, bool]:
        """Choose the replica whose turn it is; also say whether others were possible."""
        with self._lock:
            candidates = [replica for replica in self._replicas if replica.is_up] or self._replicas
            self._turn += 1
            return candidates[self._turn % len(candidates)], len(candidates) > 1

    def _note(self, replica: _Replica, call: Any) -> None:
        if call.code() in _LOST:
            self._set_down(replica, call.code())
        elif call.code() is not grpc.StatusCode.CANCELLED:  # mostly by us, so it tells nothing
            self._set_up(replica)

    def _set_down(self, replica: _Replica, code: grpc.StatusCode) -> None:
        with self._lock:
            was_up, replica.is_up = replica.is_up, False
            if was_up:
                replica.pause_s = FIRST_PAUSE_S
                replica.probe_at_s = self._clock() + replica.pause_s
        if was_up:
            log.warning("mixer_replica_down target=%s code=%s", replica.connection.target, code.name)

    def _set_up(self, replica: _Replica) -> None:
        with self._lock:
            was_up, replica.is_up = replica.is_up, True
        if not was_up:
            log.info("mixer_replica_up target=%s", replica.connection.target)

    def _probe(self) -> None:
        """Ask the replicas that are out, and have been for long enough, whether they are back."""
        with self._lock:
            now_s = self._clock()
            due = [r for r in self._replicas if not r.is_up and not r.is_probed and r.probe_at_s <= now_s]
            for replica in due:
                replica.is_probed = True
        for replica in due:
            with suppress(MixerCancelled):  # closed meanwhile; the caller hears it from its own call
                probe = replica.connection.start("GetMixer", pb.GetMixerRequest(), PROBE_TIMEOUT_S)
                probe.add_done_callback(partial(self._note_probe, replica))

    def _note_probe(self, replica: _Replica, probe: Any) -> None:
        self._note(replica, probe)
        with self._lock:
            replica.is_probed = False
            replica.pause_s = min(2 * replica.pause_s, LONGEST_PAUSE_S)
            replica.probe_at_s = self._clock() + replica.pause_s
