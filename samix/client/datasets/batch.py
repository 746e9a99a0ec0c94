"""A batch as it comes out of a subscription: what a loss needs, whose samples they are, and the place after it."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from samix.client.datasets.cursor import Cursor
from samix.mixing.batch import MixedBatch, as_unit_float
from samix.mixing.render import Rendering, render_masks

_TENSORS = ("pixels", "labels_a", "labels_b", "lam", "partner", "mask_logits")


@dataclass(frozen=True, kw_only=True)
class ReadyBatch:
    """B images, mixed unless it was asked otherwise. Has the fields of a `MixedBatch`; those that cost work are made at
    first use, and kept.
    """

    pixels: Tensor
    """[B, 3, S, S] as they came: uint8, or float16 in [0, 1]."""
    labels_a: Tensor
    """int64 [B]: labels of each image's own sample."""
    labels_b: Tensor
    """int64 [B]: labels of its partner; those of labels_a where nothing was mixed."""
    lam: Tensor
    """float32 [B]: the share of labels_a; 1 where nothing was mixed."""
    partner: Tensor
    """int64 [B]: image i was mixed with image partner[i]; i where nothing was mixed."""
    keys: tuple[str, ...]
    """B keys of the images' own samples."""
    skipped: tuple[str, ...]
    """Keys of samples that the server could not read, and left out of this batch or of an empty one before it."""
    cursor: Cursor
    """The place after this batch, as plain values: who subscribes with it goes on with the next one."""
    mask_logits: Tensor | None = None
    """float16 [B, 1, h, w] of image i's share; None where nothing was mixed."""
    rendering: Rendering | None = None
    """How the logits become masks; None where nothing was mixed."""

    def __len__(self) -> int:
        return len(self.labels_a)

    @cached_property
    def images(self) -> Tensor:
        """float32 [B, 3, S, S] in [0, 1], not normalised."""
        return as_unit_float(self.pixels)

    @cached_property
    def masks(self) -> Tensor:
        """float32 [B, 1, S, S]: the share of image i (not of its partner) at each pixel."""
        size = (self.pixels.shape[2], self.pixels.shape[3])
        if self.mask_logits is None or self.rendering is None:
            return torch.ones(len(self), 1, *size, device=self.pixels.device)
        return render_masks(self.mask_logits, self.lam, size, self.rendering)

    @property
    def partner_keys(self) -> tuple[str, ...]:
        """B keys of the samples that the images were mixed with."""
        return tuple(self.keys[index] for index in self.partner.tolist())

    def mixed(self) -> MixedBatch:
        """Return what any mixer returns, masks included."""
        return MixedBatch(
            images=self.images, labels_a=self.labels_a, labels_b=self.labels_b, lam=self.lam, masks=self.masks
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "ReadyBatch":
        """Move the tensors: the pixels as they came, a quarter of the bytes of float32 images."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ReadyBatch":
        """Copy the tensors to memory that a GPU can fetch from; a DataLoader with `pin_memory` calls this."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Any) -> "ReadyBatch":
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items() if tensor is not None})
