"""`samix pretrain`: from shards to an artefact."""

import json
from pathlib import Path

import pytest
import torch
from training import SIDE, write_pictures

from samix.mixing.artefact import load_mixer, read_provenance
from samix.mixing.presets import HALF
from trainer.pretrain import main

QUICK = ["--epochs", "1", "--loading.global-batch", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pictures(tmp_path_factory.mktemp("shards") / "train.tar", 70)


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    status = main(["digits_samix_cpu", *QUICK, *flags])
    lines = capsys.readouterr().err.splitlines()
    assert status == 2, lines
    assert "Traceback" not in lines
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def test_writes_an_artefact_that_loads(shard: str, tmp_path: Path):
    """A run leaves a mixer that mixes images of its size, and says where it comes from."""
    path = tmp_path / "mixer-x.safetensors"

    status = main(["digits_samix_cpu", *QUICK, "--data", shard, "--out", str(path)])

    mixer, provenance = load_mixer(path), read_provenance(path)
    assert status == 0
    assert mixer.name == "mixer-x"
    assert mixer.spec.image_size == SIDE
    assert mixer.mix(torch.rand(2, 3, SIDE, SIDE), seed=0).images.isfinite().all()
    expected = {"data": "train.tar", "recipe": "digits_samix_cpu", "epochs": "1", "seed": "0"}
    assert provenance.items() >= expected.items()
    assert provenance.keys() - expected.keys() == {
        "samix-service",
        "commit",
        "torch",
        "python",
        "lam_error",
        "spread",
    }
    assert json.loads(path.with_suffix(".config.json").read_text())["loading"]["global_batch"] == 32


@pytest.mark.parametrize("size", ["16", "24"])
def test_the_image_size_is_said_once(shard: str, tmp_path: Path, size: str):
    """The mixer takes the size and the normalisation of what it was trained on; there is nothing to keep in step."""
    path = tmp_path / "mixer.safetensors"

    main(["digits_samix_cpu", *QUICK, "--data", shard, "--out", str(path), "--loading.image-size", size])

    spec = load_mixer(path).spec
    assert spec.image_size == int(size)
    assert spec.mean == spec.std == HALF


def test_is_repeated_exactly(shard: str, tmp_path: Path):
    """The same data and seed give the same weights, another seed gives others."""
    versions = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        path = tmp_path / f"{name}.safetensors"
        main(["digits_samix_cpu", *QUICK, "--data", shard, "--out", str(path), "--seed", seed])
        versions.append(load_mixer(path).version)

    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize("name", ["mixer.pt", "no/such/folder/mixer.safetensors"])
def test_refuses_an_output_before_training(shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    """A name or folder that cannot be written to is refused at once."""
    sentence = refusal(capsys, "--data", shard, "--out", str(tmp_path / name))

    assert name in sentence


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--data", "no-such.tar"], "no shard matches 'no-such.tar'"),
        (["--loading.global-batch", "128"], "70 samples do not fill a global batch of 128"),
        (["--num-classes", "3"], "but there are 3 classes (0 to 2)"),
        (["--loading.image-size", "4"], "images are 4 x 4, this mixer takes sides of 8 to 1024 pixels"),
        (["--loading.image-size", "128"], "images of 128 x 128 make 4096 tokens, this mixer takes 1024"),
        (["--online.stage", "9"], "stage must be 0..3 for this backbone, got 9"),
        (["--online.momentum", "1.5"], "0 <= momentum <= momentum_end <= 1, got 1.5 and 0.99"),
        (["--online.mode", "openmixup"], "mode 'openmixup' draws one lam per batch; set per_sample_lam to False"),
        (["--optimiser.lr", "1e30"], "lower --optimiser.lr"),
        (["--epochs", "0"], "epochs and log_every must be at least 1, got 0 and 20"),
    ],
)
def test_refuses(shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str):
    """What cannot be trained is one sentence with the value and exit status 2, and no artefact is left."""
    out = tmp_path / "mixer.safetensors"

    assert sentence in refusal(capsys, "--data", shard, "--out", str(out), *flags)

    assert list(tmp_path.iterdir()) == []
