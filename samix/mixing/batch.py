"""The tensors that travel together: a plan says what will be mixed with what, a mixed batch is what a loss needs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from samix.errors import BadBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class MixPlan:
    """What one batch will be mixed with. B is the batch size."""

    lam: Tensor
    """float32 [B] in [0, 1]: the share of image i in its mix."""
    partner: Tensor
    """int64 [B], a permutation: image i is mixed with image partner[i]."""

    def __len__(self) -> int:
        return len(self.lam)

    def to(self, device: torch.device) -> "MixPlan":
        """Move both tensors to `device`."""
        return MixPlan(lam=self.lam.to(device), partner=self.partner.to(device))


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedBatch:
    """A batch after mixing, on the device of the images that went in."""

    images: Tensor
    """float32 [B, 3, H, W] in [0, 1], not normalised."""
    labels_a: Tensor | None
    """int64 [B]: labels of the images themselves; None where no labels were given."""
    labels_b: Tensor | None
    """int64 [B]: labels of their partners; None where no labels were given."""
    lam: Tensor
    """float32 [B]: the share of labels_a."""
    masks: Tensor
    """float32 [B, 1, H, W]: the share of image i (not of its partner) at each pixel."""


def check_images(images: Tensor) -> None:
    """Refuse what no mixer can mix.

    Raises:
        BadBatch: unless `images` is uint8, or floating point in [0, 1], [B, 3, H, W] with at least one pixel.
    """
    if not isinstance(images, Tensor):
        raise BadBatch(f"images must be a tensor, got {type(images).__name__}; use torch.from_numpy or torch.stack")
    shape = list(images.shape)
    if images.dim() != 4 or shape[1] != 3 or 0 in shape:
        raise BadBatch(f"images must be [batch, 3, height, width] with no empty side, got {shape}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise BadBatch(f"images must be uint8 (0..255) or floating point (0..1), got {images.dtype}")
    if images.is_floating_point():
        low, high = torch.stack(images.detach().aminmax()).tolist()
        if not 0 <= low <= high <= 1:  # False for NaN
            raise BadBatch(f"float images must lie in [0, 1], got {low} to {high}; normalise after mixing")


def check_labels(labels: Tensor | None, batch_size: int) -> None:
    """Refuse labels that do not belong to the batch.

    Raises:
        BadBatch: unless `labels` is None or int64 [B].
    """
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise BadBatch(f"labels must be a tensor or None, got {type(labels).__name__}; use torch.tensor")
    if labels.shape != (batch_size,) or labels.dtype != torch.int64:
        raise BadBatch(f"labels must be int64 [{batch_size}], got {labels.dtype} {list(labels.shape)}")


def as_unit_float(images: Tensor) -> Tensor:
    """Bring uint8 0..255 or any float 0..1 to float32 in [0, 1]; float32 passes through uncopied."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()
