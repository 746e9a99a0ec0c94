"""What the README and the mixers' cards say is true."""

import re
from pathlib import Path

import pytest
import torch
from serving import serve
from training import digit_pictures

from samix import load_mixer
from trainer.quality import mask_quality

ROOT = Path(__file__).parent.parent
ARTEFACTS = sorted((ROOT / "mixers").glob("*.safetensors"))
DIGITS = ROOT / "mixers/samix-digits-r10.safetensors"


def test_the_training_loop_of_the_readme_trains():
    """The code block of the README runs as it stands, against a server, and changes the model."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    linear = torch.nn.Linear(3 * 16 * 16, 10)
    model, before = torch.nn.Sequential(torch.nn.Flatten(), linear), linear.weight.detach().clone()
    batch = torch.zeros(4, 3, 16, 16, dtype=torch.uint8) + 99, torch.arange(4)

    with serve(load_mixer(DIGITS)) as server:
        code = block[1].replace("localhost:8001", server.addresses["grpc"])
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        exec(code, {"epochs": 1, "loader": [batch] * 3, "model": model, "optimiser": optimiser})

    assert not torch.equal(linear.weight, before)


@pytest.mark.parametrize("path", ARTEFACTS, ids=lambda path: path.stem)
def test_a_shipped_mixer_has_a_card_with_its_version(path: Path):
    """Each artefact loads, is named like its file, and its card tells its version."""
    mixer = load_mixer(path)

    assert mixer.name == path.stem
    assert mixer.version in path.with_suffix(".md").read_text()


def test_the_digits_mixer_is_not_trivial():
    """Its masks follow lambda and vary over the picture, as its card says."""
    mixer = load_mixer(DIGITS)

    quality = mask_quality(mixer, digit_pictures(256, mixer.spec.image_size), seed=0)

    assert quality.mean_error < 0.08
    assert quality.mean_spread > 0.15
