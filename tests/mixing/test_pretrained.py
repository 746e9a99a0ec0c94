"""Weights from files, into networks of ours."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from samix.errors import ConfigError
from samix.mixing.backbone import BackboneSpec, build_backbone
from samix.mixing.presets import TINY_RESNET
from samix.mixing.pretrained import load_backbone_weights

SHUFFLENET = BackboneSpec(name="torchvision/shufflenet_v2_x0_5")


def network_of(spec: BackboneSpec, *, seed: int, num_classes: int = 10) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build_backbone(spec, num_classes).eval()


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone().contiguous() for key, value in network.state_dict().items()}


def bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a torchvision network as torchvision does."""
    return {key.removeprefix("network."): value for key, value in state.items()}


def write_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def write_pth(content: object, folder: Path) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def same_weights(network: nn.Module, other: nn.Module) -> bool:
    mine, theirs = network.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(
    "write",
    [
        write_safetensors,
        write_pth,
        lambda state, folder: write_pth({"state_dict": state, "epoch": 3}, folder),
        lambda state, folder: write_pth({"model": state}, folder),
        lambda state, folder: write_pth({f"module.{key}": value for key, value in state.items()}, folder),
    ],
    ids=["safetensors", "pth", "state_dict", "model", "distributed"],
)
def test_weights_come_back(write: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path) -> None:
    """What was saved is loaded, in all the wrappings that training programs use."""
    saved, network = network_of(TINY_RESNET, seed=1), network_of(TINY_RESNET, seed=2)

    load_backbone_weights(network, write(state_of(saved), tmp_path))

    assert same_weights(network, saved)


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_torchvisions_names_fit(name: str, tmp_path: Path) -> None:
    """A ResNet of torchvision gives the same logits in timm's network and in torchvision's behind our interface."""
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        theirs = resnet18(num_classes=10).eval()
    network = network_of(BackboneSpec(name=name), seed=2)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    load_backbone_weights(network, write_safetensors(state_of(theirs), tmp_path))

    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images))


@pytest.mark.parametrize("spec", [TINY_RESNET, SHUFFLENET], ids=lambda spec: spec.name)
@pytest.mark.parametrize(("theirs", "ours"), [(7, 10), (7, 0)])
def test_a_head_of_other_classes_is_left_out(spec: BackboneSpec, theirs: int, ours: int, tmp_path: Path) -> None:
    """The body is loaded and the network's own head kept, where the file knows another number of classes."""
    saved = state_of(network_of(spec, seed=1, num_classes=theirs))
    network = network_of(spec, seed=2, num_classes=ours)
    before = state_of(network)

    load_backbone_weights(network, write_safetensors(bare(saved), tmp_path))

    after = state_of(network)
    head = {key for key in after if "fc" in key.split(".")}
    assert len(head) == (2 if ours else 0)
    assert all(torch.equal(after[key], before[key]) for key in head)
    assert all(torch.equal(after[key], saved[key]) for key in after.keys() - head)


def test_old_checkpoints_lack_counters(tmp_path: Path) -> None:
    """The number of batches seen, which torch has stored since 2018, may be missing; nothing depends on it."""
    saved, network = network_of(TINY_RESNET, seed=1), network_of(TINY_RESNET, seed=2)
    state = {key: value for key, value in state_of(saved).items() if not key.endswith("num_batches_tracked")}

    load_backbone_weights(network, write_pth(state, tmp_path))

    assert same_weights(network, saved)


def without_a_layer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("layer4")}


def with_another_stem(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"conv1.weight": torch.zeros(64, 3, 7, 7)}


def with_more(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"layer5.weight": torch.zeros(1)}


def with_half_a_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != "fc.bias"} | {"layer5.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without_a_layer, r"lacks layer4.0.conv1.weight, layer4.0.bn1.weight, layer4.0.bn1.bias and \d+ more; give"),
        (with_another_stem, r"has conv1.weight as \[64, 3, 7, 7\] for \[64, 3, 3, 3\]; give weights of the very"),
        (with_more, "has unknown layer5.weight; give"),
        (with_half_a_head, "has unknown layer5.weight; give"),
        (lambda state: without_a_layer(with_more(state)), "lacks layer4.* and has unknown layer5.weight"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable, complaint: str, tmp_path: Path) -> None:
    """A body that differs in a single tensor is refused by name, and the network keeps its weights."""
    network = network_of(TINY_RESNET, seed=2)
    path = write_safetensors(change(state_of(network_of(TINY_RESNET, seed=1))), tmp_path)

    with pytest.raises(ConfigError, match=complaint):
        load_backbone_weights(network, path)

    assert same_weights(network, network_of(TINY_RESNET, seed=2))


class Code:
    """What a pickle could run when it is read."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"model": Code()}, "holds more than tensors"),
        ([torch.zeros(1)], "holds no tensors by name"),
        ({"state_dict": {"fc.weight": "text"}}, "holds no tensors by name"),
    ],
)
def test_only_tensors_are_read(
    content: object, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with code in it, or without tensors, is refused; the code does not run."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match=complaint):
        load_backbone_weights(nn.Linear(1, 1), write_pth(content, tmp_path))

    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("size", [0, 10, 2000])
def test_a_damaged_file_is_refused(name: str, size: int, tmp_path: Path) -> None:
    """A file that ends too early is refused by name."""
    state = state_of(network_of(TINY_RESNET, seed=1))
    whole = write_pth(state, tmp_path) if name.endswith("pth") else write_safetensors(state, tmp_path)
    whole.write_bytes(whole.read_bytes()[:size])

    with pytest.raises(ConfigError, match=f"{name} is damaged"):
        load_backbone_weights(nn.Linear(1, 1), whole)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A path that leads nowhere is refused with what to give."""
    with pytest.raises(ConfigError, match=r"there are no weights at .*; give the path of a \.safetensors or .pth file"):
        load_backbone_weights(nn.Linear(1, 1), tmp_path / "none.pth")
