"""The pictures of one batch: found in memory, or decoded in parts by several processes."""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from mixer_server.datasets.pictures import KeptPicture, Shelf
from samix.errors import InputError, MixerBroken, MixerError, MixerUnavailable
from samix.framing import empty_buffer
from services.log_context import about_request
from services.shards.augment import Transform, view_generator
from services.shards.decoder import Decoder, DecoderDied
from services.shards.decoding import DecodedSample, DecodeRequest, UnreadableSample
from services.shards.keeping import KeptView, WholePicture

log = logging.getLogger(__name__)

PART = 16
"""Most pictures that one process decodes of a batch before another one may have its turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a batch is made of; its pictures follow from this alone. B is the batch size."""

    positions: np.ndarray
    """Integers [B]."""
    seed: int
    """Of the views."""
    epoch: int
    """Of the views."""
    attempt: int
    """Of `DecodeRequest`."""
    request: str = ""
    """Key of the subscription it is for, for logs; nothing follows from it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """The pictures of a batch, but for those that could not be read. B is their number."""

    images: Sequence[np.ndarray]
    """B times uint8 [3, S, S]; nobody changes them."""
    whole: np.ndarray | None
    """uint8 [B, 3, S, S]: the same in one piece, where they lie so."""
    samples: Sequence[DecodedSample]
    """[B]."""
    skipped: Sequence[UnreadableSample]
    """What could not be read."""


class Plain:
    """Makes pictures by having all of it done by the processes."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self.size = transform.size
        """Side of the images, pixels."""

    def find(self, wanted: Wanted) -> Gathered | None:  # noqa: ARG002 - as `Kept`
        """Find a batch without work: never."""
        return None

    def make(self, wanted: Wanted, rows: slice, decoder: Decoder, batch: "Gathering") -> None:
        """Make some pictures of a batch."""
        decoded = decoder.decode(_request(wanted, wanted.positions[rows].tolist(), self._transform))
        batch.room()[rows] = decoded.images
        for row, sample in enumerate(decoded.samples, rows.start):
            batch.note(row, sample)


class Kept:
    """Makes pictures of what is in memory, where it is put when it is first decoded."""

    def __init__(self, view: KeptView, size: int, shelf: Shelf) -> None:
        self.size = size
        """Side of the images, pixels."""
        self._view = view
        self._shelf = shelf

    def find(self, wanted: Wanted) -> Gathered | None:
        """Find a batch without work: if it is all in memory as it is wanted."""
        if self._view.crop is not None:
            return None
        kept = [self._shelf.find(position) for position in wanted.positions.tolist()]
        pictures = [picture for picture in kept if picture is not None]
        if len(pictures) < len(kept):
            return None
        samples = [picture.sample for picture in pictures]
        return Gathered(images=[picture.pixels for picture in pictures], whole=None, samples=samples, skipped=())

    def make(self, wanted: Wanted, rows: slice, decoder: Decoder, batch: "Gathering") -> None:
        """Make some pictures of a batch."""
        positions: list[int] = wanted.positions[rows].tolist()
        kept = {position: self._shelf.find(position) for position in positions}
        missing = [position for position, picture in kept.items() if picture is None]
        decoded = decoder.decode(_request(wanted, missing, self._view.kept)) if missing else None
        fresh = dict(zip(missing, zip(decoded.images, decoded.samples, strict=True), strict=True)) if decoded else {}
        for row, position in enumerate(positions, rows.start):
            picture = kept[position]
            if picture is None:
                pixels, sample = fresh[position]
                if isinstance(sample, UnreadableSample):
                    batch.note(row, sample)
                    continue
                picture = self._shelf.put(position, pixels, sample) or KeptPicture(pixels, sample)
            self._view_of(picture, position, row, wanted, batch)

    def _view_of(self, picture: KeptPicture, position: int, row: int, wanted: Wanted, batch: "Gathering") -> None:
        rng = view_generator(seed=wanted.seed, epoch=wanted.epoch, position=position)
        batch.room()[row] = self._view.view(picture.pixels, picture.sample.size, rng)
        batch.note(row, picture.sample)


Maker = Plain | Kept


class Gathering:
    """One batch while its pictures are gathered; parts of it may be made by several threads at once."""

    def __init__(self, maker: Maker, wanted: Wanted) -> None:
        self.answer: Future[Gathered] = Future()
        """Gets the pictures, or MixerUnavailable or MixerBroken."""
        self._maker = maker
        self._wanted = wanted
        self._lock = threading.Lock()
        self._room: np.ndarray | None = None
        self._samples: list[DecodedSample | UnreadableSample | None] = [None] * len(wanted.positions)
        self._num_missing = len(self._samples)
        self._is_settled = False

    def parts(self) -> list[slice]:
        """List the parts in which it is to be made."""
        count = len(self._samples)
        return [slice(start, min(start + PART, count)) for start in range(0, count, PART)]

    def make(self, rows: slice, decoder: Decoder) -> None:
        """Make one part, unless nobody wants the batch any more."""
        if self.answer.done():
            return
        with about_request(self._wanted.request):
            self._make(rows, decoder)

    def _make(self, rows: slice, decoder: Decoder) -> None:
        try:
            self._maker.make(self._wanted, rows, decoder, self)
        except (InputError, OSError) as error:  # no room for a shard in the cache, no file descriptor
            self._settle(MixerUnavailable(f"the dataset cannot be read now: {error}"))
        except DecoderDied as error:
            self._settle(MixerBroken(str(error)))
        except Exception:
            log.exception("gathering_failed")
            self._settle(MixerBroken("the server failed on this batch; its log has the reason"))
        else:
            self._finish_part(rows)

    def room(self) -> np.ndarray:
        """Give the room for its images: uint8 [B, 3, S, S], of which whoever makes a row fills it."""
        with self._lock:
            if self._room is None:
                shape = (len(self._samples), 3, self._maker.size, self._maker.size)
                self._room = empty_buffer(int(np.prod(shape))).reshape(shape)
            return self._room

    def note(self, row: int, sample: DecodedSample | UnreadableSample) -> None:
        """Say what was made for a row."""
        self._samples[row] = sample

    def _finish_part(self, rows: slice) -> None:
        with self._lock:
            self._num_missing -= rows.stop - rows.start
            is_whole = self._num_missing == 0
        if is_whole:
            self._settle(self._gathered())

    def _gathered(self) -> Gathered:
        good = [row for row, sample in enumerate(self._samples) if isinstance(sample, DecodedSample)]
        whole = self.room() if len(good) == len(self._samples) else np.take(self.room(), good, axis=0)
        return Gathered(
            images=list(whole),
            whole=whole,
            samples=[sample for sample in self._samples if isinstance(sample, DecodedSample)],
            skipped=[sample for sample in self._samples if isinstance(sample, UnreadableSample)],
        )

    def _settle(self, outcome: Gathered | MixerError) -> None:
        with self._lock:  # of several parts that fail the first one speaks
            is_first, self._is_settled = not self._is_settled, True
        if not is_first or not self.answer.set_running_or_notify_cancel():
            return
        if isinstance(outcome, MixerError):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


def _request(wanted: Wanted, positions: list[int], transform: Transform | WholePicture) -> DecodeRequest:
    return DecodeRequest(
        positions=positions,
        transform=transform,
        seed=wanted.seed,
        epoch=wanted.epoch,
        attempt=wanted.attempt,
    )
