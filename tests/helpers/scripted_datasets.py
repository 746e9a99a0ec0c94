"""A real dataset server by stock protobuf messages, which sends what it is told and fails when it is told: for clients.

Sample i has the key "i", label i % 10 and pixels of one grey; consumer c of C gets every C-th batch.
"""

import io
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from PIL import Image

from samix.errors import MixerError
from samix.mixer.v1 import dataset_pb2 as pb
from samix.mixer.v1 import dataset_pb2_grpc
from samix.mixer.v1 import mixer_pb2 as mixer_pb
from samix.status import to_status

PATIENCE_S = 20.0
FINGERPRINT = "0123456789ab"
LOGIT = 2.0
LAM = 0.25


@dataclass(frozen=True)
class Break:
    """A call goes wrong after so many of its batches: it ends with `status`, or says nothing more for None."""

    after: int
    status: MixerError | grpc.StatusCode | None
    within: bool = False
    """Whether the first chunk of the next batch is still sent."""


@dataclass
class ScriptedDatasets(dataset_pb2_grpc.DatasetServiceServicer):
    """Serves one dataset, `made`."""

    num_samples: int = 20
    """Of an epoch."""
    breaks: deque[Break] = field(default_factory=deque)
    """For the calls to come, one each."""
    empty: frozenset[int] = frozenset()
    """Batches of an epoch, from 0, none of whose samples can be read."""
    chunk_bytes: int = 1000
    """Largest chunk."""
    spoil: Callable[[pb.SubscribeResponse], pb.SubscribeResponse] = lambda message: message
    """Changes messages before they are sent."""
    asked: list[pb.Subscription] = field(default_factory=list)
    """What was asked for, one for each call."""
    num_granted: int = 0
    """Batches that the latest call may get altogether."""
    num_sent: int = 0
    """Batches that all calls got."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    gate: threading.Event = field(default_factory=threading.Event)

    def ListDatasets(
        self,
        request: pb.ListDatasetsRequest,  # noqa: ARG002 - empty, but part of the interface
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> pb.ListDatasetsResponse:
        return pb.ListDatasetsResponse(datasets=[self._info()])

    def Subscribe(
        self, request_iterator: Iterator[pb.SubscribeRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.SubscribeResponse]:
        first = next(request_iterator)
        wanted = first.subscription
        with self.changed:
            self.asked.append(wanted)
            call, self.num_granted = len(self.asked), first.credits
            broken = self.breaks.popleft() if self.breaks else Break(1 << 30, None)
        context.add_callback(self._wake)
        threading.Thread(target=self._read, args=(request_iterator, call), daemon=True).start()
        batches = self._batches(wanted)
        yield self.spoil(self._terms(wanted, len(batches)))
        first_number = wanted.cursor.num_batches
        for sent, number in enumerate(range(first_number, len(batches) + 1)):
            if sent == broken.after:
                if broken.within:
                    yield next(self._messages(wanted, number, batches[number]))
                self._break(broken.status, context)
            if number == len(batches):
                return
            if not self._may_send(sent, call, context):
                return
            with self.changed:
                self.num_sent += 1
                self.changed.notify_all()
            yield from self._messages(wanted, number, batches[number])

    def wait_until(self, condition: Callable[["ScriptedDatasets"], bool]) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: condition(self), PATIENCE_S)

    def _read(self, requests: Iterator[pb.SubscribeRequest], call: int) -> None:
        try:
            for request in requests:
                with self.changed:
                    if call == len(self.asked):
                        self.num_granted += request.credits
                        self.changed.notify_all()
        except grpc.RpcError:
            pass

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def _may_send(self, sent: int, call: int, context: grpc.ServicerContext) -> bool:
        with self.changed:
            self.changed.wait_for(
                lambda: not context.is_active() or (call == len(self.asked) and self.num_granted > sent), PATIENCE_S
            )
            return context.is_active()

    def _break(self, status: MixerError | grpc.StatusCode | None, context: grpc.ServicerContext) -> None:
        if isinstance(status, MixerError):
            context.abort_with_status(to_status(status))
        if status is not None:
            context.abort(status, "as told")
        self.gate.wait(PATIENCE_S)
        context.abort(grpc.StatusCode.CANCELLED, "was silent, as told")

    def _info(self) -> pb.DatasetInfo:
        return pb.DatasetInfo(name="made", fingerprint=FINGERPRINT, num_samples=self.num_samples, num_shards=1)

    def _terms(self, wanted: pb.Subscription, num_batches: int) -> pb.SubscribeResponse:
        rendering = mixer_pb.Rendering(upsampling=mixer_pb.UPSAMPLING_BILINEAR) if wanted.mixer else None
        terms = pb.SubscriptionTerms(
            dataset=self._info(),
            version="v1" if wanted.mixer else "",
            num_batches=num_batches,
            rendering=rendering,
            lease_ms=60_000,
        )
        return pb.SubscribeResponse(terms=terms)

    def _batches(self, wanted: pb.Subscription) -> list[list[int]]:
        samples = list(range(self.num_samples))
        cut = [samples[i : i + wanted.batch_size] for i in range(0, len(samples), wanted.batch_size)]
        return cut[wanted.consumer :: wanted.num_consumers]

    def _messages(self, wanted: pb.Subscription, number: int, samples: list[int]) -> Iterator[pb.SubscribeResponse]:
        skipped = [str(sample) for sample in samples] if number in self.empty else []
        samples = [] if skipped else samples
        pixels, lengths = encode(samples, wanted.image_size, wanted.format)
        side, count = wanted.image_size, len(samples)
        batch = pb.ReadyBatch(
            cursor=self._cursor(wanted, number + 1),
            shape=[count, 3, side, side],
            keys=[str(sample) for sample in samples],
            labels=[sample % 10 for sample in samples],
            jpeg_lengths=lengths,
            skipped=skipped,
        )
        if wanted.mixer:
            batch.partner.extend((index + 1) % count for index in range(count))
            batch.lam.extend([LAM] * count)
            batch.mask_shape.extend([count, 1, 2, 2])
            batch.mask_logits = np.full((count, 1, 2, 2), LOGIT, "<f2").tobytes()
        message = pb.SubscribeResponse(batch=batch, pixel_bytes=len(pixels), chunk=pixels[: self.chunk_bytes])
        yield self.spoil(message)
        for start in range(self.chunk_bytes, len(pixels), self.chunk_bytes):
            yield self.spoil(pb.SubscribeResponse(chunk=pixels[start : start + self.chunk_bytes]))

    def _cursor(self, wanted: pb.Subscription, num_batches: int) -> pb.Cursor:
        return pb.Cursor(
            fingerprint=FINGERPRINT,
            seed=wanted.seed,
            version="v1" if wanted.mixer else "",
            epoch=wanted.epoch,
            num_batches=num_batches,
            batch_size=wanted.batch_size,
            num_consumers=wanted.num_consumers,
            consumer=wanted.consumer,
            drop_last=wanted.drop_last,
        )


def grey(sample: int, side: int) -> np.ndarray:
    """Draw sample i: uint8 [3, side, side]."""
    return np.full((3, side, side), 10 * sample % 256, np.uint8)


def encode(samples: list[int], side: int, batch_format: int) -> tuple[bytes, list[int]]:
    """Make the bytes of a batch, and the length of each where they are JPEGs."""
    pictures = [grey(sample, side) for sample in samples]
    if batch_format == pb.BATCH_FORMAT_JPEG:
        files = [_jpeg(picture) for picture in pictures]
        return b"".join(files), [len(file) for file in files]
    if batch_format == pb.BATCH_FORMAT_FLOAT16:
        return b"".join((picture / 255).astype("<f2").tobytes() for picture in pictures), []
    return b"".join(picture.tobytes() for picture in pictures), []


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(file, "JPEG", quality=95)
    return file.getvalue()


@contextmanager
def serving_datasets(servicer: ScriptedDatasets, port: int = 0) -> Iterator[str]:
    """Run a server; yields its address."""
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        servicer.gate.set()
        server.stop(0).wait()
