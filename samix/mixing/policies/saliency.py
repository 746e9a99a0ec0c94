"""Where an image is interesting: by its own contrasts, or by what a classifier's loss reacts to.

The static map needs no training and no labels. The gradient map runs the classifier forwards and backwards once more.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samix.errors import BadBatch

Saliency = Callable[[Tensor, Tensor | None], Tensor]
"""From images float32 [B, 3, H, W] in [0, 1] and labels int64 [B], or None where the batch has none, to float32
[B, H, W] >= 0 on their device. Scale does not matter."""

_RADII = (12, 24, 28, 48, 56, 112)
_GREY_LEVEL = 1 / 255
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def measure(saliency: Saliency, images: Tensor, labels: Tensor | None) -> Tensor:
    """Measure the saliency of a batch, float32 [B, H, W], and check what came back.

    Raises:
        BadBatch: if it has another shape, or is negative or not finite.
    """
    heat = saliency(images, labels).detach().float()
    if heat.shape != (len(images), *images.shape[2:]):
        raise BadBatch(
            f"saliency must be [batch, height, width] of images {list(images.shape)}, got {list(heat.shape)}"
        )
    if not 0 <= heat.min() <= heat.max() < torch.inf:  # False for NaN
        raise BadBatch(
            f"saliency must be finite and not negative, got {heat.min():g} to {heat.max():g}; did it diverge?"
        )
    return heat


@torch.no_grad()
def fine_grained_saliency(images: Tensor, _labels: Tensor | None = None) -> Tensor:
    """Find what differs from its surroundings: the static fine-grained saliency of SaliencyMix.

    It is from Montabone & Soto, Human detection using a mobile platform and novel features derived from a visual
    saliency mechanism, Image and Vision Computing, 2010. At six scales the brightness of a pixel is compared with the
    mean of the square around it. What is brighter and what is darker than its surroundings is summed up apart, and
    both maps are brought to a maximum of 1 before they are added.

    Args:
        images: float32 [B, 3, H, W] in [0, 1].

    Returns:
        float32 [B, H, W] in [0, 1]; 0 everywhere in an image of one colour.
    """
    red, green, blue = images.unbind(dim=1)
    grey = _smooth(_LUMINANCE[0] * red + _LUMINANCE[1] * green + _LUMINANCE[2] * blue)
    integral = F.pad(grey, (1, 0, 1, 0)).cumsum(dim=1).cumsum(dim=2)
    brighter, darker = torch.zeros_like(grey), torch.zeros_like(grey)
    for radius in _RADII:
        contrast = _contrast(grey, integral, min(radius, max(grey.shape[1:])))
        contrast = F.hardshrink(contrast, _GREY_LEVEL)  # or the rounding of the integral would be all that stands out
        brighter += contrast.relu()
        darker += (-contrast).relu()
    return _to_unit(_to_unit(brighter) + _to_unit(darker))


def gradient_saliency(model: nn.Module) -> Saliency:
    """Measure how strongly a classifier's loss reacts to each pixel (Puzzle Mix, arXiv:2009.06962, section 3).

    It is the norm over the channels of d cross-entropy / d pixel. The model runs in evaluation mode, where images do
    not see each other; its mode, its gradients and its batch statistics are left as they were. Under DDP give the bare
    module: the wrapper would wait for the other ranks.

    Args:
        model: from images float32 [B, 3, H, W] in [0, 1] to logits [B, K]; normalisation is the model's business.

    Returns:
        a Saliency that raises BadBatch where the batch has no labels.
    """

    def saliency(images: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise BadBatch("saliency by gradient needs labels: give labels=, or leave out saliency=")
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            with torch.enable_grad():
                pixels = images.detach().requires_grad_()
                loss = F.cross_entropy(model(pixels).float(), labels.to(images.device), reduction="sum")
                (gradient,) = torch.autograd.grad(loss, pixels)
        finally:
            for module in training:
                module.training = True
        return gradient.norm(dim=1)

    return saliency


def _smooth(grey: Tensor) -> Tensor:
    # Twice the Gaussian [1, 2, 1] / 4 along either axis, as four sums of 2 x 2.
    sums = F.pad(grey, (2, 2, 2, 2), mode="replicate")
    for _ in range(4):
        sums = sums[:, :-1] + sums[:, 1:]
        sums = sums[:, :, :-1] + sums[:, :, 1:]
    return sums / 4**4


def _contrast(grey: Tensor, integral: Tensor, radius: int) -> Tensor:
    # Each pixel less the mean of the others in the square of 2 * radius + 1 pixels around it, clipped at the edge.
    side = 2 * radius + 1
    sums = F.pad(integral, (radius,) * 4, mode="replicate")
    sums = sums[:, side:] - sums[:, :-side]
    sums = sums[:, :, side:] - sums[:, :, :-side]
    num_rows, num_columns = (_num_around(length, radius, grey.device) for length in grey.shape[1:])
    num_pixels = num_rows[:, None] * num_columns
    return (grey * num_pixels - sums) / (num_pixels - 1).clamp(min=1)


def _num_around(length: int, radius: int, device: torch.device) -> Tensor:
    cells = torch.arange(length, device=device)
    return (cells + radius + 1).clamp(max=length) - (cells - radius).clamp(min=0)


def _to_unit(heat: Tensor) -> Tensor:
    highest = heat.amax(dim=(1, 2), keepdim=True)
    return heat / highest.clamp(min=torch.finfo(heat.dtype).tiny)
