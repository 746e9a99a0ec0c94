"""A classifier as after some training, batches for it, and what a step did to a module."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from samix.mixing.classifier import Classifier
from samix.mixing.presets import HALF, TINY_RESNET

NUM_CLASSES = 4
SIDE = 16


def lively_classifier(*, seed: int = 0, clean_head: bool = False) -> Classifier:
    """Build a classifier whose residual branches are open and whose batch-norm statistics are its own."""
    classifier = Classifier.build(TINY_RESNET, NUM_CLASSES, mean=HALF, std=HALF, seed=seed, clean_head=clean_head)
    generator = torch.Generator().manual_seed(seed)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    with torch.no_grad():
        for _ in range(2):
            classifier.train()(random_images(16, seed=seed))
    return classifier


def random_images(size: int = 8, *, seed: int = 0) -> Tensor:
    """Draw images float32 [size, 3, SIDE, SIDE] in [0, 1]."""
    return torch.rand(size, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def labels_of(images: Tensor) -> Tensor:
    """Label images 0, 1 .. NUM_CLASSES - 1, 0 and so on."""
    return torch.arange(len(images)) % NUM_CLASSES


def learning(module: nn.Module) -> set[str]:
    """Name the parameters that a backward gave a gradient other than 0."""
    named = module.named_parameters()
    return {name for name, parameter in named if parameter.grad is not None and parameter.grad.any()}


def all_parameters(module: nn.Module, prefix: str = "") -> set[str]:
    """Name all parameters of a module that may learn; a gamma that is fixed may not."""
    return {prefix + name for name, parameter in module.named_parameters() if parameter.requires_grad}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copy the state of a module."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def is_unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    """Tell whether a module is, bit for bit, as it was."""
    return all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@contextmanager
def counted_passes(module: nn.Module) -> Iterator[Counter[str]]:
    """Count how often each layer inside a module runs; a layer is what has parameters or buffers of its own."""
    passes: Counter[str] = Counter()
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    }

    def count(name: str) -> None:
        passes[name] += 1

    handles = [layer.register_forward_hook(lambda *_, name=name: count(name)) for name, layer in layers.items()]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()
