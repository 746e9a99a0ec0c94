"""The methods of samix.mixer.v1.OnlineService."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from mixer_server.front.edge import Call, Edge, parse
from mixer_server.front.patience import Patience
from mixer_server.front.request_config import RequestConfig
from mixer_server.metrics import UNKNOWN, MixerMetrics
from mixer_server.online.rank_stream import RankStream
from mixer_server.online.sessions import Sessions
from mixer_server.online.weights import WeightIntake, check_header
from samix.cotraining.wire import CHUNK_BYTES, MAX_HEAD_BYTES, SERVICE, read_settings, tensor_infos
from samix.errors import BadBatch, MixerBroken, MixerCancelled, MixerError, MixerOverloaded
from samix.framing import Framed, chunks, join
from samix.mixer.v1 import online_pb2 as pb
from samix.status import STATUS_OF, to_status

log = logging.getLogger(__name__)

NUM_METHODS = 4
"""Methods that are counted with those of other services; CoTrain and SendWeights bound their calls themselves."""
CO_TRAIN = "CoTrain"
SEND_WEIGHTS = "SendWeights"
_MOST_BYTES = CHUNK_BYTES + MAX_HEAD_BYTES
_RETRY_AFTER_S = 1.0
_WEIGHTS_S = 300.0
"""Longest one set of weights may be on its way, seconds."""

MessageT = TypeVar("MessageT", bound=Message)


class OnlineServicer:
    """Speaks gRPC only: mixers learn elsewhere. `close` once the calls have ended."""

    def __init__(
        self, sessions: Sessions, requests: RequestConfig, *, patience: Patience, metrics: MixerMetrics
    ) -> None:
        self._sessions = sessions
        self._requests = requests
        self._patience = patience
        self._metrics = metrics
        config = sessions.config
        self._ranks = threading.BoundedSemaphore(config.max_ranks)
        self._weights = threading.BoundedSemaphore(config.max_sessions)
        self._readers = ThreadPoolExecutor(config.max_ranks, "rank-reader")

    @property
    def num_streams(self) -> int:
        """Threads of the pool that streams may hold."""
        return self._sessions.config.max_ranks + self._sessions.config.max_sessions

    def attach(self, server: grpc.Server, edge: Edge) -> None:
        """Answer OnlineService on this server."""
        handlers = {
            "OpenSession": edge.wrap("OpenSession", self.open_session),
            "GetSession": edge.wrap("GetSession", self.get_session),
            "CloseSession": edge.wrap("CloseSession", self.close_session),
            "ExportMixer": grpc.unary_stream_rpc_method_handler(self._export_mixer),
            CO_TRAIN: grpc.stream_stream_rpc_method_handler(self._co_train),
            SEND_WEIGHTS: grpc.stream_unary_rpc_method_handler(self._send_weights),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def close(self) -> None:
        """Wait for the readers; the calls must have ended before."""
        self._readers.shutdown()

    def open_session(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002 - every method has this signature
        """Begin a session or go on with one."""
        request = parse(pb.OpenSessionRequest, data).message
        settings = read_settings(request.settings)
        session, found_step, is_new = self._sessions.open(request.key, settings, request.step)
        response = pb.OpenSessionResponse(
            state=session.state(),
            found_step=found_step,
            is_new=is_new,
            tensors=tensor_infos(session.shapes),
            max_chunk_bytes=CHUNK_BYTES,
        )
        return response.SerializeToString()

    def get_session(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002 - every method has this signature
        """Say where a session stands."""
        session = self._sessions.get(parse(pb.GetSessionRequest, data).message.key)
        return pb.GetSessionResponse(state=session.state()).SerializeToString()

    def close_session(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002 - every method has this signature
        """End a session."""
        request = parse(pb.CloseSessionRequest, data).message
        exported = self._sessions.end(self._sessions.get(request.key), request.name)
        return pb.CloseSessionResponse(file=exported.file, sha256=exported.mixer.sha256).SerializeToString()

    def _export_mixer(self, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        with self._answered("ExportMixer", context):
            request = parse(pb.ExportMixerRequest, data).message
            exported = self._sessions.export(self._sessions.get(request.key), request.name)
            content = (self._sessions.config.folder / exported.file).read_bytes()
            mixer = exported.mixer
            info = pb.ExportedMixer(
                name=mixer.name, version=mixer.version, sha256=mixer.sha256, step=exported.step, num_bytes=len(content)
            )
            message = pb.ExportMixerResponse(mixer=info)
            for chunk in chunks(memoryview(content), CHUNK_BYTES):
                yield join(message, chunk)
                message = pb.ExportMixerResponse()

    def _co_train(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with self._answered(CO_TRAIN, context), _place(self._ranks, "ranks are connected"):
            first = self._receive(pb.CoTrainRequest, messages, context).message
            if not first.HasField("join"):
                raise BadBatch("the first message of a stream must hold the join", field="join")
            session = self._sessions.get(first.join.key)
            stream = RankStream(
                context,
                session,
                first.join.rank,
                requests=self._requests,
                patience=self._patience,
                metrics=self._sessions.metrics,
            )
            session.join(first.join.rank, stream.end)
            try:
                if not context.add_callback(stream.hear):
                    raise MixerCancelled("the call ended before it was served")
                self._readers.submit(stream.read, messages)
                yield from stream.write()
            finally:
                session.desk.leave(first.join.rank, stream.end)
                stream.close()

    def _send_weights(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        with self._answered(SEND_WEIGHTS, context), _place(self._weights, "sets of weights are on their way"):
            first = self._receive(pb.SendWeightsRequest, messages, context)
            header = first.message.header
            session = self._sessions.get(header.key)
            check_header(header, session.shapes, session.settings.length.total_steps)
            session.desk.begin_weights(header.step)
            self._patience.expect((context, SEND_WEIGHTS), _WEIGHTS_S, context.cancel)  # or drops of bytes never end
            try:
                intake = WeightIntake(header, session.shapes)
                received = self._sessions.metrics.received_bytes.labels(session.name, "weights")
                framed: Framed[pb.SendWeightsRequest] | None = first
                while framed is not None:
                    intake.add(framed.bulk)
                    received.inc(len(framed.bulk))
                    framed = self._receive_next(pb.SendWeightsRequest, messages, context)
                newest = session.desk.offer_weights(intake.step, intake.finish())
            finally:
                self._patience.met((context, SEND_WEIGHTS))
                session.desk.end_weights()
            return pb.SendWeightsResponse(weights_step=newest).SerializeToString()

    @contextmanager
    def _answered(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        """Count the call, and translate what it raises."""
        code = grpc.StatusCode.CANCELLED  # unless it ends otherwise
        try:
            yield
            code = grpc.StatusCode.OK
        except MixerError as error:
            code = STATUS_OF[type(error)]
            self._metrics.problems.note(method, code.name, str(error))
            self._sessions.metrics.refused.labels(code.name).inc()
            context.abort_with_status(to_status(error.with_traceback(None)))
        except GeneratorExit:
            raise
        except Exception:
            log.exception("call_failed", extra={"method": method})
            code = grpc.StatusCode.INTERNAL
            error = MixerBroken("the server failed on this call; its log has the reason")
            context.abort_with_status(to_status(error))
        finally:
            self._metrics.requests.labels(UNKNOWN, UNKNOWN, method, code.name).inc()

    def _receive(
        self, kind: type[MessageT], messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Framed[MessageT]:
        framed = self._receive_next(kind, messages, context)
        if framed is None:
            raise BadBatch("the call ended before its first message came")
        return framed

    def _receive_next(
        self, kind: type[MessageT], messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Framed[MessageT] | None:
        """Wait for a message, for as long as an upload may take; None at the end of them."""
        self._patience.expect(context, self._requests.max_upload_s, context.cancel)
        data: Any = None
        try:
            data = next(messages, None)
        except grpc.RpcError as error:  # how gRPC says that the call is over
            error.__traceback__ = None  # gRPC keeps the error, which would keep these frames
        finally:
            self._patience.met(context)
        if data is None:
            if not context.is_active():
                raise MixerCancelled("the call ended before all of it came")
            return None
        if len(data) > _MOST_BYTES:
            raise BadBatch(f"a message may have {_MOST_BYTES} bytes, got {len(data)}; send smaller chunks")
        return parse(kind, data)


@contextmanager
def _place(places: threading.BoundedSemaphore, what: str) -> Iterator[None]:
    if not places.acquire(blocking=False):
        raise MixerOverloaded(f"as many {what} as may be at once; come again", _RETRY_AFTER_S)
    try:
        yield
    finally:
        places.release()
