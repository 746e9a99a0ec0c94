"""Weights trained elsewhere, into a network of ours: what timm and torchvision publish, or a state dict of one's own.

Nothing but tensors is read. A head for another number of classes is left out, whoever starts from ImageNet wants that;
any other difference is an error, since a network that is half pretrained trains, and looks like a worse method.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from samix.errors import ConfigError
from samix.mixing.torchvision_backbone import TorchvisionBackbone

Weights = Mapping[str, Tensor]

_NAMED = 3
"""Keys that a complaint names, of those that do not fit."""


def load_backbone_weights(network: nn.Module, path: str | Path) -> None:
    """Put the weights of a file into a network.

    Args:
        network: from `build_backbone`, whole.
        path: .safetensors, or what `torch.save` wrote: a state dict, also below "state_dict" or "model", with or
            without the prefix "module." of distributed training.

    Raises:
        ConfigError: if the file is missing, damaged or holds more than tensors, or its tensors do not fit.
    """
    source = Path(path)
    own = network.network if isinstance(network, TorchvisionBackbone) else network
    found, wanted = _read(source), own.state_dict()
    heads = tuple(f"{name}." for name in _head_names(network))
    if _shapes(found, heads) != _shapes(wanted, heads):
        found, wanted = _without(found, heads), _without(wanted, heads)
    _check(source, found, wanted)
    own.load_state_dict(found, strict=False)


def _read(source: Path) -> Weights:
    if not source.is_file():
        raise ConfigError(f"there are no weights at {source}; give the path of a .safetensors or .pth file")
    try:
        if source.suffix == ".safetensors":
            content = load_file(source)
        else:
            content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{source} is damaged, or holds more than tensors; save the state dict alone, best as .safetensors"
        ) from error
    except Exception as error:  # whatever a damaged file leads to, from EOFError to UnicodeDecodeError
        raise ConfigError(f"{source} is damaged ({type(error).__name__}); copy it again") from error
    return _state_dict(source, content)


def _state_dict(source: Path, content: object) -> Weights:
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{source} holds no tensors by name; give a state dict")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _head_names(network: nn.Module) -> tuple[str, ...]:
    if isinstance(network, TorchvisionBackbone):
        return (network.classifier,)
    names = getattr(network, "pretrained_cfg", {}).get("classifier", "fc")  # a tuple where there are several
    return (names,) if isinstance(names, str) else tuple(names)


def _shapes(weights: Weights, prefixes: tuple[str, ...]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in weights.items() if key.startswith(prefixes)}


def _without(weights: Weights, prefixes: tuple[str, ...]) -> Weights:
    return {key: value for key, value in weights.items() if not key.startswith(prefixes)}


def _check(source: Path, found: Weights, wanted: Weights) -> None:
    # Counters of batches are missing in checkpoints of before 2018, among them some that torchvision still publishes.
    lacking = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    unknown = [key for key in found if key not in wanted]
    other = [
        f"{key} as {list(found[key].shape)} for {list(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    complaints = [
        f"{verb} {', '.join(keys[:_NAMED])}{f' and {len(keys) - _NAMED} more' if len(keys) > _NAMED else ''}"
        for verb, keys in (("lacks", lacking), ("has unknown", unknown), ("has", other))
        if keys
    ]
    if complaints:
        raise ConfigError(f"{source} {' and '.join(complaints)}; give weights of the very network that is built")
