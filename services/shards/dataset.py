"""Batches of decoded, augmented samples; runs inside the loader's workers, which import nothing of gRPC."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from samix.errors import ConfigError, InputError, ShardError
from services.shards.augment import Transform, view_generator
from services.shards.decode import open_picture
from services.shards.index import ShardSet
from services.shards.reader import SampleReader
from services.shards.skips import MAX_REPLACEMENTS, SkippedSample, draw_replacement


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples of one step of one rank. B is the batch size, S the side of the images."""

    images: Tensor
    """uint8 [B, 3, S, S]."""
    labels: Tensor
    """int64 [B]."""
    positions: Tensor
    """int64 [B]: where the samples stand in their set."""
    skipped: tuple[SkippedSample, ...] = ()
    """What could not be read; others stand in its place."""

    def __len__(self) -> int:
        return len(self.labels)

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory; torch's DataLoader calls this."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            positions=self.positions.pin_memory(),
        )


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What the parent asks a worker for: everything the answer depends on."""

    epoch: int
    positions: np.ndarray
    """int64 [B]."""


Answer = Batch | InputError | OSError


class ShardDataset(Dataset[Answer]):
    """Maps a request to its batch.

    An error of the data or the disk is returned, not raised: torch would bury its sentence in the worker's traceback.
    """

    def __init__(
        self, shards: ShardSet, transform: Transform, *, num_classes: int, seed: int, may_skip: bool = False
    ) -> None:
        self._num_samples = shards.total
        self._reader = SampleReader(shards)
        self._transform = transform
        self._num_classes = num_classes
        self._seed = seed
        self._may_skip = may_skip
        self._epoch = 0

    def __getitem__(self, request: BatchRequest) -> Answer:
        try:
            return self.load(request)
        except (InputError, OSError) as err:
            return err

    def load(self, request: BatchRequest) -> Batch:
        """Read, decode and augment the samples of a request, or others in the place of what cannot be read.

        Raises:
            ShardError: naming the first shard and sample that cannot be used and not be skipped.
            ConfigError: if a label is beyond the number of classes.
        """
        if request.epoch != self._epoch:
            self._epoch = request.epoch
            self._reader.try_again()
        size, count = self._transform.size, len(request.positions)
        images, labels = np.empty((count, 3, size, size), np.uint8), np.empty(count, np.int64)
        positions, skipped = request.positions.copy(), list[SkippedSample]()
        for row in range(count):
            pixels, labels[row], positions[row] = self._load_or_replace(request.epoch, int(positions[row]), skipped)
            images[row] = pixels.transpose(2, 0, 1)
        return Batch(
            images=torch.from_numpy(images),
            labels=torch.from_numpy(labels),
            positions=torch.from_numpy(positions),
            skipped=tuple(skipped),
        )

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()

    def _load_or_replace(self, epoch: int, position: int, skipped: list[SkippedSample]) -> tuple[np.ndarray, int, int]:
        """Return pixels, label and position of what was read, and add to `skipped` what was not."""
        candidate = position
        for attempt in range(MAX_REPLACEMENTS if self._may_skip else 0):
            try:
                return *self._load_sample(epoch, candidate), candidate
            except ShardError as err:
                if attempt == 0:  # a replacement that fails too loses no other sample of the epoch
                    skipped.append(SkippedSample(position, str(err)))
            candidate = draw_replacement(
                self._num_samples, seed=self._seed, epoch=epoch, position=position, attempt=attempt
            )
        return *self._load_sample(epoch, candidate), candidate

    def _load_sample(self, epoch: int, position: int) -> tuple[np.ndarray, int]:
        sample = self._reader.read(position)
        if sample.label >= self._num_classes:
            # Of the flag, not of the shard: skipping would hide whole classes.
            raise ConfigError(
                f"{sample} has label {sample.label}, but there are {self._num_classes} classes (0 to "
                f"{self._num_classes - 1}); raise num-classes"
            )
        rng = view_generator(seed=self._seed, epoch=epoch, position=position)
        return self._transform(open_picture(sample), rng), sample.label
