"""Masks of the public reference implementation, from the same checkpoint: ours must be equal.

Skipped where there is no folder with its tensors: `../shared/golden` from the project root, or $SAMIX_TEST_GOLDEN.
"""

import json
import os
import runpy
from pathlib import Path

import pytest
import torch
from logs import own_logging
from safetensors import safe_open
from torch import Tensor

from samix.mixing.artefact import load_mixer
from samix.mixing.batch import as_unit_float
from samix.mixing.frozen import FrozenMixer
from trainer.import_openmixup import main

FOLDER = Path(os.environ.get("SAMIX_TEST_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden"))
NAME = "samix_cifar100"
SHARES = ("0.0", "0.25", "0.4", "0.5", "0.7", "1.0")
FLAGS = ["--lam-curve", "0.25", "--normalisation", "cifar"]

pytestmark = pytest.mark.skipif(
    not (FOLDER / f"e2e_{NAME}.safetensors").is_file(), reason=f"no golden tensors at {FOLDER}; set SAMIX_TEST_GOLDEN"
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with safe_open(FOLDER / f"e2e_{NAME}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


@pytest.fixture(scope="module")
def mixer(tmp_path_factory: pytest.TempPathFactory) -> FrozenMixer:
    """What `samix import-openmixup` makes of the checkpoint that the tensors come from."""
    folder = tmp_path_factory.mktemp("golden")
    recipe = runpy.run_path(str(FOLDER / "synthetic_checkpoint.py"))
    torch.save(recipe["checkpoint"](json.loads((FOLDER / f"keys_{NAME}.json").read_text()), 7), folder / "latest.pth")
    with own_logging():
        assert main([str(folder / "latest.pth"), "--out", str(folder / "golden.safetensors"), *FLAGS]) == 0
    return load_mixer(folder / "golden.safetensors")


def test_the_statistics_are_the_references(mixer: FrozenMixer, golden: dict[str, Tensor]) -> None:
    """`cifar` names the mean and the standard deviation the reference normalised with."""
    stored = torch.tensor([mixer.spec.mean, mixer.spec.std])

    torch.testing.assert_close(stored, torch.stack([golden["mean"], golden["std"]]).view(2, 3), check_dtype=False)


def test_features_are_the_references(mixer: FrozenMixer, golden: dict[str, Tensor]) -> None:
    """The encoder stops at the same place of the same network, after the same normalisation."""
    images = as_unit_float(golden["images"])

    features = mixer.net.encoder(mixer.net.normalise(images))

    torch.testing.assert_close(features, golden["features"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", SHARES)
def test_masks_are_the_references(mixer: FrozenMixer, golden: dict[str, Tensor], share: str) -> None:
    """Masks agree within 1e-5 for every lam, 0 and 1 included."""
    mixed = mixer.mix(golden["images"], lam=float(share), partner=golden["partner"])

    torch.testing.assert_close(mixed.masks, golden[f"mask_i.lam{share}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", ["0.25", "0.7"])
def test_mixed_images_are_the_references(mixer: FrozenMixer, golden: dict[str, Tensor], share: str) -> None:
    """Blending before normalising, as we do, gives what the reference gets after it."""
    mixed = mixer.mix(golden["images"], lam=float(share), partner=golden["partner"])

    torch.testing.assert_close(mixer.net.normalise(mixed.images), golden[f"mixed.lam{share}"], atol=1e-4, rtol=0)
