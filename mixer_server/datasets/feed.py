"""What one consumer gets: a subscription that has been checked."""

from collections.abc import Hashable
from dataclasses import dataclass

from mixer_server.datasets.dataset import Dataset
from mixer_server.datasets.dealing import Deal
from samix.mixer.v1 import dataset_pb2 as pb
from samix.mixing.frozen import FrozenMixer
from samix.wire import encode_rendering

_FORMATS = {pb.BATCH_FORMAT_UNSPECIFIED: pb.BATCH_FORMAT_UINT8}
_AUGMENTATIONS = {pb.AUGMENTATION_UNSPECIFIED: pb.AUGMENTATION_CROP_FLIP}
_JPEG_QUALITY = 90


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """A subscription with all that it names."""

    subscription: pb.Subscription
    """As it came."""
    dataset: Dataset
    """What is read."""
    mixer: FrozenMixer | None
    """The version that mixes, also if it is unloaded meanwhile; None without one."""
    deal: Deal
    """The shape of the epoch."""
    first: int
    """Batches of this consumer that are done."""

    @property
    def num_batches(self) -> int:
        """Batches of this consumer in the whole epoch."""
        return self.deal.num_batches(self.subscription.consumer)

    @property
    def version(self) -> str:
        """Of the mixer; empty without one."""
        return self.mixer.version if self.mixer else ""

    @property
    def format(self) -> pb.BatchFormat:
        """How images travel."""
        return _FORMATS.get(self.subscription.format, self.subscription.format)

    @property
    def jpeg_quality(self) -> int:
        """Of JPEGs, 1 to 100."""
        return self.subscription.jpeg_quality or _JPEG_QUALITY

    @property
    def is_centred(self) -> bool:
        """Whether pictures are the same in each epoch."""
        return self._augmentation == pb.AUGMENTATION_CENTER

    @property
    def claim(self) -> Hashable:
        """What no other client may consume at the same time: all that batches follow from, and the consumer."""
        wanted = self.subscription
        mixer = (self.mixer.name, self.mixer.version) if self.mixer else None
        look = (mixer, wanted.image_size, self._augmentation)
        shape = (wanted.batch_size, wanted.num_consumers, wanted.drop_last)
        return (wanted.dataset, look, wanted.seed, wanted.epoch, shape, wanted.consumer)

    def cursor(self, num_batches: int) -> pb.Cursor:
        """Make the cursor after so many batches."""
        wanted = self.subscription
        return pb.Cursor(
            fingerprint=self.dataset.info.fingerprint,
            seed=wanted.seed,
            version=self.version,
            epoch=wanted.epoch,
            num_batches=num_batches,
            batch_size=wanted.batch_size,
            num_consumers=wanted.num_consumers,
            consumer=wanted.consumer,
            drop_last=wanted.drop_last,
        )

    def terms(self, lease_s: float) -> pb.SubscriptionTerms:
        """Make the terms."""
        return pb.SubscriptionTerms(
            dataset=self.dataset.info,
            version=self.version,
            num_batches=self.num_batches,
            rendering=encode_rendering(self.mixer.spec.rendering) if self.mixer else None,
            lease_ms=round(1000 * lease_s),
        )

    @property
    def _augmentation(self) -> pb.Augmentation:
        return _AUGMENTATIONS.get(self.subscription.augmentation, self.subscription.augmentation)
