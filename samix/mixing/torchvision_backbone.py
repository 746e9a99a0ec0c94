"""Networks of torchvision by name: `torchvision/regnet_y_400mf`.

torchvision does not tell where a network's stages end. One run without arithmetic shows it: the chain of modules in
which each gets exactly what the one before put out, and the size of each output. A stage ends where the size halves.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from samix.errors import ConfigError
from samix.mixing.chain import ChainBackbone

PREFIX = "torchvision/"

Runs = dict[str, tuple[Tensor, Tensor]]
"""Input and output of each module, by name."""

_SIDE = 224
# ViT and MaxViT take images of one size, and the weights of an MNASNet do not load without a version beside them.
_USE_TIMM = {"vit_": "vit_small_patch16_224", "maxvit_": "maxvit_tiny_tf_224", "mnasnet": "mnasnet_100"}
# Classifiers in the middle would make forward return a tuple while training.
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


class TorchvisionBackbone(ChainBackbone):
    """A network of torchvision, whole or cut."""

    def __init__(
        self, network: nn.Module, classifier: str, steps: list[str], feature_info: list[dict[str, Any]]
    ) -> None:
        super().__init__(steps, feature_info)
        self.network = network
        self.classifier = classifier
        """Name of the layer in `network` that has an output for each class, or had one."""

    @classmethod
    def build(cls, name: str, num_classes: int) -> "TorchvisionBackbone":
        """Build with random weights.

        Args:
            name: torchvision's, after the prefix.
            num_classes: size of the classifier; 0 leaves pooled features.

        Raises:
            ConfigError: if torchvision has no such classifier, or its stages cannot be cut out.
        """
        network = _build_network(name, num_classes or 1)
        classifier = [name for name, module in network.named_modules() if module._parameters][-1]
        outputs = {f"network.{step}": output for step, output in _trace(network, classifier).items()}
        if num_classes == 0:
            network.set_submodule(classifier, nn.Identity())
        return cls(network, classifier, list(outputs), _ends_of_stages(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Classify normalised images [B, 3, H, W]; logits [B, K], or pooled features where there are no classes."""
        return self.network(images)


def _build_network(name: str, num_classes: int) -> nn.Module:
    from torchvision import models  # half a second to import, and the client never needs it

    known = models.list_models(module=models)
    if name not in known:
        near = ", ".join([other for other in known if other[:4] == name[:4]][:5]) or "see torchvision.models"
        raise ConfigError(f"torchvision knows no backbone {name[:60]!r}; near it: {near}")
    for family, timms in _USE_TIMM.items():
        if name.startswith(family):
            raise ConfigError(f"torchvision's {name} cannot be an encoder; use one of timm's, such as {timms!r}")
    # RegNets work out their widths with tensors, which the meta device does not have.
    device = torch.get_default_device()
    with torch.device("cpu" if name.startswith("regnet_") else device):
        network = models.get_model(name, weights=None, num_classes=num_classes, **_OPTIONS.get(name, {}))
    return network.to(device)


def _trace(network: nn.Module, classifier: str) -> dict[str, Tensor]:
    """Run the network on the meta device; return what each module of its chain puts out, in order."""
    images = torch.empty(1, 3, _SIDE, _SIDE, device="meta")
    ran = _run(network, images)
    chain: dict[str, Tensor] = {}
    last = images
    for step in _body(network, classifier.split(".")[0], ran):
        if step not in ran or ran[step][0] is not last:
            break
        last = chain[step] = ran[step][1]
    return chain


def _run(network: nn.Module, images: Tensor) -> Runs:
    """Run the network without its weights; return the input and output of each of its modules."""
    ran: Runs = {}
    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: ran.update({name: (*inputs[:1], output)}))
        for name, module in network.named_modules()
    ]
    weights = {name: value.to("meta") for name, value in (*network.named_parameters(), *network.named_buffers())}
    try:
        with torch.no_grad():
            functional_call(network.eval(), weights, images)
    finally:
        network.train()
        for handle in handles:
            handle.remove()
    return ran


def _body(network: nn.Module, head: str, ran: Runs) -> Iterator[str]:
    """Name the modules before pooling and head, in order."""
    for name, child in network.named_children():
        if name == head or isinstance(child, nn.AdaptiveAvgPool2d):
            return
        yield from _open(name, child, ran)


def _open(path: str, module: nn.Module, ran: Runs) -> Iterator[str]:
    """Name a module, or what it consists of where it spans several stages."""
    if isinstance(module, nn.Sequential) and path in ran and _side(ran[path][0]) > 3 * _side(ran[path][1]):
        for name, child in module.named_children():
            yield from _open(f"{path}.{name}", child, ran)
    else:
        yield path


def _ends_of_stages(outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Describe the last output of each stride, finest first."""
    ends: dict[int, dict[str, Any]] = {}
    for step, output in outputs.items():
        channels_last = output.shape[2] != output.shape[3]  # the image is a square: [B, h, w, C] of a Swin transformer
        stride = 2 ** round(math.log2(_SIDE / _side(output)))  # unpadded convolutions lose a few pixels
        ends[stride] = {
            "module": step,
            "num_chs": output.shape[3 if channels_last else 1],
            "reduction": stride,
            "channels_last": channels_last,
        }
    return list(ends.values())


def _side(features: Tensor) -> int:
    return features.shape[2]  # of [B, C, h, w] and of [B, h, w, C], where h = w
