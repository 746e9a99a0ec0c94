"""Masks of the public reference implementation, from the same weights: ours must be equal.

Skipped where there is no folder with its tensors: `../shared/golden` from the project root, or $SAMIX_TEST_GOLDEN.
"""

import json
import os
import runpy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from samix.mixing.backbone import BackboneSpec
from samix.mixing.batch import as_unit_float
from samix.mixing.block import BlockSpec
from samix.mixing.frozen import FrozenMixer, MaskNet, freeze
from samix.mixing.presets import samix_spec

FOLDER = Path(os.environ.get("SAMIX_TEST_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden"))
NAME = "samix_cifar100"
SHARES = ("0.0", "0.25", "0.4", "0.5", "0.7", "1.0")

pytestmark = pytest.mark.skipif(
    not (FOLDER / f"e2e_{NAME}.safetensors").is_file(), reason=f"no golden tensors at {FOLDER}; set SAMIX_TEST_GOLDEN"
)

PREFIXES = {
    "encoder.backbone.": "backbone_k.",
    "block.query.": "mix_block.query.conv.",
    "block.key.": "mix_block.key.conv.",
    "block.content.0.": "mix_block.value.conv.0.conv.",
    "block.content.1.": "mix_block.value.conv.0.bn.",
    "block.content.3.": "mix_block.value.conv.1.conv.",
}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with safe_open(FOLDER / f"e2e_{NAME}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


@pytest.fixture(scope="module")
def mixer(golden: dict[str, Tensor]) -> FrozenMixer:
    with safe_open(FOLDER / f"e2e_{NAME}.safetensors", framework="pt") as file:
        settings = json.loads(file.metadata()["meta"])
    mean, std = (tuple(golden[key].tolist()) for key in ("mean", "std"))
    spec = samix_spec(
        BackboneSpec(name=f"resnet{settings['depth']}", stem=settings["stem"]),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        image_size=settings["size"],
        stage=settings["mask_layer"],
        block=BlockSpec(learnable_gamma=False, lam_curve=settings["mix_block"]["lam_mul_k"], activation="elu"),
        upsampling=settings["mix_block"]["unsampling_mode"][0],
        lam_margin=0.0,
    )
    net = MaskNet.build(spec)
    net.load_state_dict(renamed(net, checkpoint(settings["seed"])))
    return freeze(net, spec, name="golden", sha256="0" * 64, device="cpu")


def checkpoint(seed: int) -> dict[str, Tensor]:
    recipe = runpy.run_path(str(FOLDER / "synthetic_checkpoint.py"))
    return recipe["checkpoint"](json.loads((FOLDER / f"keys_{NAME}.json").read_text()), seed)["state_dict"]


def renamed(net: MaskNet, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {"block.gamma": torch.ones(())}
    for key in net.state_dict().keys() - weights.keys():
        ours = next(prefix for prefix in PREFIXES if key.startswith(prefix))
        weights[key] = theirs[PREFIXES[ours] + key.removeprefix(ours)]
    return weights


def test_features_are_the_references(mixer: FrozenMixer, golden: dict[str, Tensor]) -> None:
    """The encoder stops at the same place of the same network, after the same normalisation."""
    images = as_unit_float(golden["images"])

    features = mixer.net.encoder(mixer.net.normalise(images))

    torch.testing.assert_close(features, golden["features"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", SHARES)
def test_masks_are_the_references(mixer: FrozenMixer, golden: dict[str, Tensor], share: str) -> None:
    """Masks agree within 1e-4 for every lam, 0 and 1 included."""
    mixed = mixer.mix(golden["images"], lam=float(share), partner=golden["partner"])

    torch.testing.assert_close(mixed.masks, golden[f"mask_i.lam{share}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", ["0.25", "0.7"])
def test_mixed_images_are_the_references(mixer: FrozenMixer, golden: dict[str, Tensor], share: str) -> None:
    """Blending before normalising, as we do, gives what the reference gets after it."""
    mixed = mixer.mix(golden["images"], lam=float(share), partner=golden["partner"])

    torch.testing.assert_close(mixer.net.normalise(mixed.images), golden[f"mixed.lam{share}"], atol=5e-4, rtol=0)
