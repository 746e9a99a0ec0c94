"""Checks subscriptions before anything is done for them."""

from mixer_server.datasets.datasets import Datasets
from mixer_server.datasets.dealing import Deal
from mixer_server.datasets.feed import Feed
from mixer_server.front.intake import Intake
from mixer_server.front.readiness import Readiness
from mixer_server.front.request_config import RequestConfig
from mixer_server.hosting.registry import Registry
from mixer_server.scheduling.batcher import SHUTTING_DOWN
from samix.errors import BadBatch, ConfigError, MixerUnavailable, StaleCursor
from samix.mixer.v1 import dataset_pb2 as pb
from samix.mixing.frozen import FrozenMixer

_MAX_CONSUMERS = 1 << 16
_MAX_TOKEN = 64
_CHOICES = (
    ("format", pb.BatchFormat, "UINT8 (1), FLOAT16 (2) or JPEG (3)"),
    ("augmentation", pb.Augmentation, "CROP_FLIP (1) or CENTER (2)"),
)


class Checker:
    """Knows what there is, and the limits."""

    def __init__(
        self,
        requests: RequestConfig,
        *,
        datasets: Datasets,
        registry: Registry,
        readiness: Readiness,
        intake: Intake,
    ) -> None:
        self._requests = requests
        self._datasets = datasets
        self._registry = registry
        self._readiness = readiness
        self._intake = intake

    def check(self, subscription: pb.Subscription) -> Feed:
        """Check a subscription.

        Raises:
            BadBatch: if a number makes no sense, or is too large for this server; names the field.
            MixerNotFound: if there is no such dataset or mixer.
            MixerUnavailable: if the mixer is warming up or the server drains.
            StaleCursor: if the cursor is of something else.
        """
        if self._readiness.is_draining:
            raise MixerUnavailable(SHUTTING_DOWN)
        dataset = self._datasets.find(subscription.dataset)
        self._check_numbers(subscription)
        mixer = self._find_mixer(subscription)
        self._check_size(subscription, mixer)
        feed = Feed(
            subscription=subscription,
            dataset=dataset,
            mixer=mixer,
            deal=Deal(
                num_samples=dataset.info.num_samples,
                batch_size=subscription.batch_size,
                num_consumers=subscription.num_consumers,
                drop_last=subscription.drop_last,
            ),
            first=subscription.cursor.num_batches if subscription.HasField("cursor") else 0,
        )
        self._check_deal(feed)
        if subscription.HasField("cursor"):
            _check_cursor(feed)
        return feed

    def _check_numbers(self, wanted: pb.Subscription) -> None:
        _check_range("batch_size", wanted.batch_size, 1, self._requests.max_images)
        _check_range("num_consumers", wanted.num_consumers, 1, _MAX_CONSUMERS)
        _check_range("consumer", wanted.consumer, 0, wanted.num_consumers - 1)
        _check_range("jpeg_quality", wanted.jpeg_quality, 0, 100)
        for name, choices, known in _CHOICES:
            value = getattr(wanted, name)
            if value not in choices.values():
                raise BadBatch(f"{name} must be {known}, got {value}", field=name)
        if len(wanted.token) > _MAX_TOKEN:
            raise BadBatch(f"token may have {_MAX_TOKEN} characters, got {len(wanted.token)}", field="token")

    def _find_mixer(self, wanted: pb.Subscription) -> FrozenMixer | None:
        if not wanted.mixer:
            if wanted.version:
                raise BadBatch(f"no mixer is named, name it or omit the version {wanted.version!r}", field="version")
            return None
        version = wanted.version or self._version_of_cursor(wanted)
        mixer = self._registry.find(wanted.mixer, version)
        self._readiness.check(mixer.name, mixer.version)
        return mixer

    def _version_of_cursor(self, wanted: pb.Subscription) -> str:
        """Choose the version of the cursor as long as it is hosted."""
        version = wanted.cursor.version
        return version if any(mixer.version == version for mixer in self._registry.versions(wanted.mixer)) else ""

    def _check_size(self, wanted: pb.Subscription, mixer: FrozenMixer | None) -> None:
        size, count = wanted.image_size, wanted.batch_size
        limit = self._requests.max_message_mib << 20
        if not size or count * 3 * size**2 > limit:
            raise BadBatch(
                f"image_size must be at least 1, and {count} images of it may have {limit} bytes, got {size}; take "
                "smaller images or batches",
                field="image_size",
            )
        try:
            self._datasets.config.transform(size, is_centred=wanted.augmentation == pb.AUGMENTATION_CENTER)
        except ConfigError as error:
            raise BadBatch(f"images of {size} pixels cannot be made here: {error}", field="image_size") from error
        if mixer is not None:
            _check_shape(self._intake, mixer, wanted)

    def _check_deal(self, feed: Feed) -> None:
        deal = feed.deal
        if deal.drop_last and not deal.num_rounds:
            raise BadBatch(
                f"{deal.num_consumers} consumers with batches of {deal.batch_size} and drop_last get nothing of "
                f"{deal.num_samples} samples; make batches smaller",
                field="batch_size",
            )


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise BadBatch(f"{name} must lie in {least}..{most}, got {value}", field=name)


def _check_shape(intake: Intake, mixer: FrozenMixer, wanted: pb.Subscription) -> None:
    try:
        mixer.spec.check_size(wanted.image_size, wanted.image_size)
    except BadBatch as error:
        raise BadBatch(str(error), field="image_size") from error
    try:
        intake.check_shape(mixer, (wanted.batch_size, 3, wanted.image_size, wanted.image_size))
    except BadBatch as error:
        raise BadBatch(str(error), field="batch_size") from error


def _check_cursor(feed: Feed) -> None:
    cursor, here = feed.subscription.cursor, feed.cursor(feed.first)
    for field in pb.Cursor.DESCRIPTOR.fields:
        theirs, ours = getattr(cursor, field.name), getattr(here, field.name)
        if theirs != ours:
            raise StaleCursor(
                f"the cursor's {field.name} is {theirs!r}, that of this subscription is {ours!r}; take the cursor of "
                "this very epoch, or none to start it anew"
            )
    if feed.first > feed.num_batches:
        raise StaleCursor(f"the cursor is at batch {feed.first} of {feed.num_batches}; take none to start the epoch")
