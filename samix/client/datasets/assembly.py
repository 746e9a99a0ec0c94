"""Messages of one call put together to batches; what does not fit the subscription is refused here."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from samix import wire
from samix.client.buffers import Buffers
from samix.client.datasets.batch import ReadyBatch
from samix.client.datasets.cursor import cursor_values
from samix.client.datasets.share import Share
from samix.errors import BadBatch, MixerBroken
from samix.framing import as_bytes, split
from samix.jpeg import JpegBatch
from samix.mixer.v1 import dataset_pb2 as pb
from samix.mixing.render import LOGIT_LIMIT, Rendering


class Assembly:
    """The batches of one call, for one thread. Chunks are copied once, into the memory that becomes the tensor."""

    def __init__(self, share: Share, buffers: Buffers, num_done: int) -> None:
        """Expect the batch after `num_done`, and those that follow."""
        self.terms: pb.SubscriptionTerms | None = None
        """What the server said first; None until it did."""
        self.num_done = num_done
        """Batches of the epoch that are done, those of earlier calls included."""
        self._share = share
        self._buffers = buffers
        self._rendering: Rendering | None = None
        self._message: pb.ReadyBatch | None = None
        self._pixels = buffers.take(0)
        self._filled = 0

    @property
    def is_over(self) -> bool:
        """Whether the last batch of the epoch has come."""
        return self.terms is not None and self.num_done >= self.terms.num_batches and self._message is None

    def add(self, data: bytes) -> ReadyBatch | None:
        """Take a message; return the batch that it completes, if it does.

        Raises:
            MixerBroken: if it does not belong there.
            google.protobuf.message.DecodeError: if it is no message.
        """
        framed = split(pb.SubscribeResponse, data)
        if framed.message.HasField("terms"):
            self._take_terms(framed.message.terms)
            return None
        if framed.message.HasField("batch"):
            self._begin(framed.message.batch, framed.message.pixel_bytes)
        self._fill(framed.bulk)
        return self._finish() if self._filled == len(self._pixels) else None

    def _take_terms(self, terms: pb.SubscriptionTerms) -> None:
        if self.terms is not None:
            raise MixerBroken("the terms came twice")
        self.terms = terms
        if self._share.mixer is not None:
            self._rendering = wire.decode_rendering(terms.rendering)

    def _begin(self, message: pb.ReadyBatch, pixel_bytes: int) -> None:
        if self.terms is None or self._message is not None:
            raise MixerBroken("a batch came before the terms" if self.terms is None else "a batch came within another")
        self._check(message, pixel_bytes)
        self._message, self._pixels, self._filled = message, self._buffers.take(pixel_bytes), 0

    def _fill(self, chunk: memoryview) -> None:
        end = self._filled + len(chunk)
        if self._message is None or end > len(self._pixels):
            raise MixerBroken(f"a chunk of {len(chunk)} bytes is not part of a batch")
        self._pixels[self._filled : end] = np.frombuffer(chunk, np.uint8)
        self._filled = end

    def _finish(self) -> ReadyBatch:
        message, pixels = self._message, self._pixels
        assert message is not None
        # Or the buffer would count as used for as long as no other batch begins.
        self._message, self._pixels, self._filled = None, self._buffers.take(0), 0
        self.num_done = message.cursor.num_batches
        num_images = message.shape[0]
        labels = torch.tensor(message.labels, dtype=torch.int64)
        is_mixed = self._rendering is not None
        partner = torch.tensor(message.partner, dtype=torch.int64) if is_mixed else torch.arange(num_images)
        return ReadyBatch(
            pixels=self._decode(message, pixels),
            labels_a=labels,
            labels_b=labels[partner] if is_mixed else labels,
            lam=torch.tensor(message.lam, dtype=torch.float32) if is_mixed else torch.ones(num_images),
            partner=partner,
            keys=tuple(message.keys),
            skipped=tuple(message.skipped),
            cursor=cursor_values(message.cursor),
            mask_logits=_logits(message) if is_mixed else None,
            rendering=self._rendering,
        )

    def _check(self, message: pb.ReadyBatch, pixel_bytes: int) -> None:
        share, side, shape = self._share, self._share.image_size, tuple(message.shape)
        if len(shape) != 4 or shape[1:] != (3, side, side) or shape[0] > share.batch_size:
            raise MixerBroken(f"a batch of {list(shape)} came, [{share.batch_size}, 3, {side}, {side}] was asked for")
        if message.cursor.num_batches != self.num_done + 1:
            raise MixerBroken(f"batch {message.cursor.num_batches} of the epoch came, {self.num_done + 1} is next")
        num_images, is_jpeg = shape[0], share.format == "jpeg"
        most, said = share.max_bytes(num_images), sum(message.jpeg_lengths)
        if pixel_bytes > most or (pixel_bytes != said if is_jpeg else pixel_bytes != most):
            raise MixerBroken(
                f"{pixel_bytes} bytes are announced for {num_images} images, {said if is_jpeg else most} fit"
            )
        counts = {"keys": len(message.keys), "labels": len(message.labels)}
        if is_jpeg:
            counts["jpeg_lengths"] = len(message.jpeg_lengths)
        if share.mixer is not None:
            counts |= {"partner": len(message.partner), "lam": len(message.lam)}
            if sorted(message.partner) != list(range(num_images)) or not all(0 <= lam <= 1 for lam in message.lam):
                raise MixerBroken("partners are no permutation, or lam leaves [0, 1]")
        for name, count in counts.items():
            if count != num_images:
                raise MixerBroken(f"{count} {name} came with {num_images} images")

    def _decode(self, message: pb.ReadyBatch, pixels: np.ndarray) -> Tensor:
        shape = tuple(message.shape)
        if self._share.format == "jpeg" and shape[0]:
            return _decode_jpegs(pixels, message.jpeg_lengths, shape)
        dtype = np.dtype("<f2" if self._share.format == "float16" else np.uint8)
        return (
            torch.from_numpy(np.frombuffer(as_bytes(pixels), dtype).reshape(shape)) if shape[0] else torch.empty(shape)
        )


def _logits(message: pb.ReadyBatch) -> Tensor:
    shape, data = tuple(message.mask_shape), message.mask_logits
    num_images = message.shape[0]
    if num_images == 0:
        return torch.empty(0, 1, 1, 1, dtype=torch.float16)
    if (
        len(shape) != 4
        or shape[:2] != (num_images, 1)
        or 0 in shape
        or len(data) != 2 * shape[2] * shape[3] * num_images
    ):
        raise MixerBroken(f"got {len(data)} bytes of masks {shape} for {num_images} images")
    logits = torch.from_numpy(np.frombuffer(bytearray(data), "<f2").reshape(shape))
    if not bool(logits.abs().max() <= LOGIT_LIMIT):  # False for NaN
        raise MixerBroken(f"mask logits leave +-{LOGIT_LIMIT:.0f}; the mixer's weights may be damaged")
    return logits


def _decode_jpegs(data: np.ndarray, lengths: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg  # takes seconds to import, and most take raw pixels

    num_images, _, height, width = shape
    pictures = JpegBatch(data=as_bytes(data), lengths=tuple(lengths), shape=(num_images, 3, height, width))
    try:
        pictures.check()
        parts = [torch.from_numpy(data[start:end]) for start, end in pictures.bounds()]
        return torch.stack([torch.as_tensor(decode_jpeg(part, ImageReadMode.RGB)) for part in parts])
    except (BadBatch, RuntimeError) as error:
        raise MixerBroken(f"a JPEG of the batch cannot be decoded ({str(error).splitlines()[0]})") from error
