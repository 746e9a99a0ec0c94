"""Encoders compiled by torch.compile, once for each number of images they are given.

A compiled network knows one shape, and another one costs half a minute. So a batch is cut into parts of 16, 8, 4, 2 and
1 images, which five shapes do for any request. Images of sides that were not compiled for go the plain way.
"""

import shutil
from collections.abc import Iterator

import torch
import torch._inductor.config
from torch import Tensor

from samix.errors import ConfigError
from samix.mixing.batch import MixPlan
from samix.mixing.encoder import Encoder
from samix.mixing.frozen import FrozenMixer

PARTS = (16, 8, 4, 2, 1)
"""Images at once; larger parts are no faster on a CPU."""

_MAX_SHAPES = 256
"""That torch keeps for one function; beyond it would go back to the plain way without a word."""


class CompiledEncoder(Encoder):
    """An encoder that is compiled for some sizes of images."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.backbone, encoder.index)
        self._sizes: set[tuple[int, ...]] = set()
        self._compiled = torch.compile(encoder.forward, dynamic=False, fullgraph=True)

    def add_size(self, height: int, width: int) -> None:
        """Compile images of that size, pixels, from the next batch on."""
        self._sizes.add((height, width))

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images [B, 3, H, W] to features [B, C, h, w]."""
        if images.shape[2:] not in self._sizes:
            return super().forward(images)
        # Always laid out alike: another order in memory would be another shape.
        images = images.contiguous(memory_format=torch.channels_last)
        return torch.cat([self._compiled(part) for part in images.split(list(cut(len(images))))])


def check_compiler() -> None:
    """Refuse to compile where nothing can.

    Raises:
        ConfigError: if there is no C++ compiler.
    """
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ConfigError("--compile needs a C++ compiler, found no g++, clang++ or c++; install one, or leave it out")


def compile_encoder(mixer: FrozenMixer, side: int, precision: torch.dtype) -> None:
    """Compile the encoder of a mixer for square images of that side, in pixels; takes half a minute or more."""
    torch._dynamo.config.recompile_limit = _MAX_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = _MAX_SHAPES
    encoder = mixer.net.encoder
    if not isinstance(encoder, CompiledEncoder):
        encoder = mixer.net.encoder = CompiledEncoder(encoder).eval()
    encoder.add_size(side, side)
    # Freezing folds batch norm into convolutions; it is most of the gain.
    with torch._inductor.config.patch(freezing=True):
        for size in PARTS:
            images = torch.zeros(size, 3, side, side, dtype=torch.uint8)
            plan = MixPlan(lam=torch.full((size,), 0.5), partner=torch.arange(size))
            mixer.mask_logits(images, plan, precision=precision)


def cut(num_images: int) -> Iterator[int]:
    """Cut a number of images into parts of the sizes that are compiled."""
    for size in PARTS:
        while num_images >= size:
            yield size
            num_images -= size
