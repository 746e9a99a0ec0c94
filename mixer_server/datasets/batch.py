"""One batch of a subscription on its way: gathered, mixed, encoded."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from mixer_server.datasets.epochs import Epoch
from mixer_server.datasets.feed import Feed
from mixer_server.datasets.gathering import Gathered, Gathering, Maker, Wanted
from mixer_server.front.intake import Intake
from mixer_server.scheduling.budget import MemoryBudget
from mixer_server.scheduling.job import Job
from samix.errors import MixerError, MixerOverloaded
from samix.framing import as_bytes
from samix.jpeg import encode_images
from samix.mixer.v1 import dataset_pb2 as pb
from samix.mixing.batch import MixPlan, as_unit_float
from samix.mixing.plan import SAMIX_ALPHA, draw_plan, generator_for
from samix.wire import MixCall, MixReply
from services.log_context import about_request

_IMAGES_AT_ONCE = 4  # that become float16, so that they stay in the caches
_ITEM_BYTES = {pb.BATCH_FORMAT_FLOAT16: 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """What batches of one subscription are made with."""

    feed: Feed
    epoch: Epoch
    maker: Maker
    intake: Intake
    budget: MemoryBudget
    share: MemoryBudget
    """What batches of datasets may hold of it."""
    client: str
    """Whose jobs they are."""
    request: str
    """Key of the subscription, for logs."""
    on_news: Callable[[], object]
    """Called, from any thread, when a batch has come further."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyToSend:
    """A batch as it travels."""

    message: pb.ReadyBatch
    """All but its images."""
    pieces: Sequence[memoryview]
    """Its images, one behind the other."""
    num_skipped: int
    """Samples left out of it that no batch was short of before."""


def footprint_bytes(feed: Feed) -> int:
    """Say how much memory a batch holds at most: its pictures, and what becomes of them."""
    wanted = feed.subscription
    pixels = wanted.batch_size * 3 * wanted.image_size**2
    mixed = pixels * _ITEM_BYTES.get(feed.format, 1) if feed.mixer or feed.format in _ITEM_BYTES else 0
    together = pixels if feed.mixer else 0
    return pixels + together + mixed + (pixels if feed.format == pb.BATCH_FORMAT_JPEG else 0)


class Batch:
    """A batch that has begun; for one thread. `close` it, whatever became of it."""

    def __init__(self, making: Making, number: int, memory: ExitStack) -> None:
        self.number = number
        """Among the batches of its consumer, from 0."""
        self._making = making
        self._memory = memory
        self._gathering: Gathering | None = None
        self._plan: MixPlan | None = None
        self._job: Job | None = None
        self._error: MixerError | None = None
        self._submit_at_s = 0.0
        self._give_up_at_s: float | None = None

    @classmethod
    def begin(cls, making: Making, number: int) -> "Batch":
        """Begin to gather the pictures of a batch.

        Raises:
            MixerOverloaded: if there is no memory for it now.
        """
        with ExitStack() as memory:
            for budget in (making.share, making.budget):
                memory.enter_context(budget.reserve(footprint_bytes(making.feed)))
            batch = cls(making, number, memory.pop_all())
        feed, epoch = making.feed, making.epoch
        rows = feed.deal.rows(feed.subscription.consumer, number)
        epoch.reach(rows.start)
        wanted = Wanted(
            positions=epoch.order[rows],
            seed=epoch.seed,
            epoch=epoch.epoch,
            attempt=epoch.attempt,
            request=making.request,
        )
        batch._gathering = feed.dataset.gather(making.maker, wanted)
        batch._gathering.answer.add_done_callback(lambda _answer: making.on_news())
        return batch

    def advance(self, max_wait_s: float) -> float | None:
        """Hand it to its mixer once it is gathered; says in how many seconds to try again, if its queue was full.

        What goes wrong is said by `encode`: batches before this one may be fine.

        Args:
            max_wait_s: how long to try, in seconds.
        """
        try:
            return self._advance(max_wait_s)
        except MixerError as error:
            self._error = error.with_traceback(None)  # its frames would hold the batch
            return None

    @property
    def is_ready(self) -> bool:
        """Whether it can be sent, or why not be said."""
        if self._error is not None or not self._is_gathered:
            return self._error is not None
        return not self._needs_mixer or (self._job is not None and self._job.answer.done())

    def encode(self) -> ReadyToSend:
        """Encode it; it must be ready.

        Raises:
            DataLost: if too many samples of the epoch could not be read.
            MixerError: why it could not be made.
        """
        if self._error is not None:
            raise self._error
        gathered = self._gathered
        with about_request(self._making.request):
            num_skipped = self._making.epoch.count_skipped(gathered.skipped)
        reply = self._job.answer.result() if self._job else None
        images = reply.images if reply else None
        assert images is None or isinstance(images, np.ndarray)
        pieces, lengths = self._encode_images(gathered, images)
        feed, size = self._making.feed, self._making.maker.size
        message = pb.ReadyBatch(
            cursor=feed.cursor(self.number + 1),
            shape=(len(gathered.samples), 3, size, size),
            keys=[sample.key for sample in gathered.samples],
            labels=[sample.label for sample in gathered.samples],
            jpeg_lengths=lengths,
            skipped=[sample.name for sample in gathered.skipped],
        )
        if reply is not None and self._plan is not None:
            _add_mix(message, self._plan, reply)
        return ReadyToSend(message=message, pieces=pieces, num_skipped=num_skipped)

    def close(self) -> None:
        """Give its memory back; what is under way is not wanted any more."""
        if self._gathering is not None and self._gathering.answer.cancel():
            self._making.feed.dataset.forget(self._gathering)
        if self._job is not None:
            self._job.give_up()
        self._gathering = self._job = None
        self._memory.close()

    @property
    def _is_gathered(self) -> bool:
        return self._gathering is not None and self._gathering.answer.done()

    @property
    def _gathered(self) -> Gathered:
        assert self._gathering is not None, "it has begun"
        return self._gathering.answer.result()

    @property
    def _needs_mixer(self) -> bool:
        return self._making.feed.mixer is not None and len(self._gathered.samples) > 0

    def _advance(self, max_wait_s: float) -> float | None:
        if not self._is_gathered or not self._needs_mixer:
            return None
        try:
            if self._job is None and time.monotonic() >= self._submit_at_s:
                self._submit()
            if self._job is not None and self._job.answer.done():
                self._job.answer.result()
        except MixerOverloaded as error:  # refused, or given way to another's
            self._job = None
            self._wait(error, max_wait_s)
        return max(0.0, self._submit_at_s - time.monotonic()) if self._job is None else None

    def _submit(self) -> None:
        making, gathered = self._making, self._gathered
        feed = making.feed
        assert feed.mixer is not None
        number = feed.deal.global_number(feed.subscription.consumer, self.number)
        generator = generator_for("subscribe", making.epoch.seed, making.epoch.epoch, number)
        plan = self._plan = draw_plan(len(gathered.samples), alpha=SAMIX_ALPHA, generator=generator)
        call = MixCall(
            mixer=feed.mixer.name,
            version=feed.version,
            pixels=gathered.whole if gathered.whole is not None else np.stack(gathered.images),
            lam=plan.lam.numpy(),
            partner=plan.partner.numpy(),
            wants_images=True,
            image_dtype=np.dtype("<f2" if feed.format == pb.BATCH_FORMAT_FLOAT16 else np.uint8),
        )
        job = making.intake.make_own_job(feed.mixer, call, making.client, making.request)
        making.intake.submit(job)
        self._job = job
        job.answer.add_done_callback(lambda _answer: making.on_news())

    def _wait(self, error: MixerOverloaded, max_wait_s: float) -> None:
        now_s = time.monotonic()
        self._give_up_at_s = self._give_up_at_s or now_s + max_wait_s
        if now_s > self._give_up_at_s:
            raise error
        self._submit_at_s = now_s + error.retry_after_s

    def _encode_images(
        self, gathered: Gathered, mixed: np.ndarray | None
    ) -> tuple[Sequence[memoryview], Sequence[int]]:
        """Return the pieces of the images, and their lengths if they are JPEGs."""
        feed, whole = self._making.feed, gathered.whole
        if not gathered.images:
            return (), ()
        if feed.format == pb.BATCH_FORMAT_JPEG:
            pixels = mixed if mixed is not None else whole if whole is not None else np.stack(gathered.images)
            pictures = encode_images(pixels, feed.jpeg_quality)
            return [memoryview(picture) for picture in pictures], [len(picture) for picture in pictures]
        if mixed is not None:
            return [as_bytes(np.ascontiguousarray(mixed))], ()
        if feed.format == pb.BATCH_FORMAT_FLOAT16:
            return [as_bytes(_as_float16(gathered.images))], ()
        return ([as_bytes(whole)] if whole is not None else [as_bytes(image) for image in gathered.images]), ()


def _add_mix(message: pb.ReadyBatch, plan: MixPlan, reply: MixReply) -> None:
    message.partner.extend(plan.partner.tolist())
    message.lam.extend(plan.lam.tolist())
    message.mask_shape.extend(reply.mask_logits.shape)
    message.mask_logits = reply.mask_logits.astype("<f2", copy=False).tobytes()


def _as_float16(images: Sequence[np.ndarray]) -> np.ndarray:
    halves = torch.empty((len(images), *images[0].shape), dtype=torch.float16)
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        part = torch.from_numpy(np.stack(images[start : start + _IMAGES_AT_ONCE]))
        halves[start : start + _IMAGES_AT_ONCE] = as_unit_float(part)
    return halves.numpy()
