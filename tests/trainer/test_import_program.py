"""`samix import-openmixup`: from a checkpoint of OpenMixup to a mixer."""

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openmixup_checkpoints import checkpoint, only
from torch import Tensor

from samix.errors import ArtefactError
from samix.mixing.artefact import load_mixer, read_provenance
from trainer.import_openmixup import main, read_checkpoint

USUAL = ["--lam-curve", "0.25", "--normalisation", "cifar"]
META = {"epoch": 200, "iter": 100_000, "config": "model = dict(...)"}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return only(checkpoint("samix"), "backbone_k.", "mix_block.", "head_mix_q.")


@pytest.fixture(scope="module")
def latest(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "latest.pth"
    torch.save({"meta": META, "state_dict": state}, path)
    return path


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.path,)


def test_a_checkpoint_becomes_a_mixer(latest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The artefact mixes, tells which checkpoint it comes from, and the last line tells what was recognised."""
    out = tmp_path / "mine.safetensors"

    status = main([str(latest), "--out", str(out), *USUAL])

    mixer = load_mixer(out)
    mixed = mixer.mix(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), lam=0.3, partner=torch.tensor([1, 0]))
    provenance, report = read_provenance(out), capsys.readouterr().err.splitlines()[-1]
    assert status == 0
    assert (mixer.name, mixer.spec.mode, mixed.masks.shape) == ("mine", "openmixup", (2, 1, 64, 64))
    assert (provenance["source"], provenance["epoch"]) == ("latest.pth", "200")
    assert provenance["source_sha256"] == hashlib.sha256(latest.read_bytes()).hexdigest()
    assert "kind=SAMix lam_encoding=multiply lam_curve=0.25 backbone=resnet18 stem=cifar stage=2" in report
    assert mixer.version in report


def test_every_flag_reaches_the_mixer(latest: Path, tmp_path: Path) -> None:
    """Curve, upsampling, normalisation, stage, margin, size and name are what was asked for."""
    out = tmp_path / "mine.safetensors"
    flags = ["--lam-curve", "-1", "--upsampling", "nearest", "--normalisation", "imagenet", "--stage", "2"]

    status = main([str(latest), "--out", str(out), *flags, "--lam-margin", "0.08", "--image-size", "64", "--name", "n"])

    mixer = load_mixer(out)
    spec = mixer.spec
    assert status == 0
    assert (mixer.name, spec.block.lam_curve, spec.stage, spec.image_size) == ("n", -1, 2, 64)
    assert (spec.mean[0], spec.rendering.upsampling, spec.rendering.lam_margin) == (0.485, "nearest", 0.08)


def test_a_bare_state_dict_will_do(state: dict[str, Tensor], latest: Path, tmp_path: Path) -> None:
    """Weights saved without the run's notes make the same mixer, of unknown epoch."""
    torch.save(state, tmp_path / "bare.pth")
    flags = ["--name", "same", *USUAL]

    statuses = [
        main([str(path), "--out", str(tmp_path / f"{path.stem}.safetensors"), *flags])
        for path in (tmp_path / "bare.pth", latest)
    ]

    assert statuses == [0, 0]
    assert load_mixer(tmp_path / "bare.safetensors").version == load_mixer(tmp_path / "latest.safetensors").version
    assert "epoch" not in read_provenance(tmp_path / "bare.safetensors")


def test_a_curve_without_use_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """AutoMix bends no lambda: a curve that was given all the same is said to have no effect."""
    torch.save(only(checkpoint("automix"), "backbone_k.", "mix_block."), tmp_path / "automix.pth")

    status = main([str(tmp_path / "automix.pth"), "--out", str(tmp_path / "a.safetensors"), *USUAL])

    assert status == 0
    assert "WARNING trainer.import_openmixup lam_curve_unused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--normalisation", "cifar"], "give --lam-curve, the lam_mul_k of its config: 0.25 for CIFAR-100"),
        (["--lam-curve", "0.25"], "give --normalisation cifar"),
        ([*USUAL, "--stage", "4"], "got 4, leave --stage out"),
        ([*USUAL, "--lam-margin", "0.7"], "lam_margin must lie in [0, 0.5], got 0.7"),
        ([*USUAL, "--out", "mixer.pth"], "an artefact's name ends in .safetensors, got 'mixer.pth'"),
        ([*USUAL, "--name", "a\nb"], "printable"),
    ],
)
def test_refuses_flags(
    latest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    """A flag that is missing or wrong is one sentence and exit status 2, and nothing is written."""
    status = main([str(latest), "--out", str(tmp_path / "mine.safetensors"), *flags])

    errors = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(errors) == 1
    assert sentence in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda _: {"backbone.conv1.weight": torch.ones(1)}, "holds backbone.* but no mixing block"),
        (lambda state: {"state_dict": only(state, "mix_block.")}, "but no momentum encoder"),
        (lambda state: {"state_dict": {**state, "mix_block.key.conv.bias": torch.ones(3)}}, "float32 [3] where"),
        (lambda state: {**state, "mix_block.key.conv.bias": 3}, "holds no state_dict of tensors"),
        (lambda _: {7: torch.ones(1)}, "holds no state_dict of tensors"),
        (lambda _: [1, 2], "holds no state_dict of tensors"),
    ],
)
def test_refuses_other_files(
    state: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: Callable[[dict[str, Tensor]], Any],
    sentence: str,
) -> None:
    """A file that is no such checkpoint is one sentence with its name and exit status 2."""
    source = tmp_path / "other.pth"
    torch.save(content(state), source)

    status = main([str(source), "--out", str(tmp_path / "mine.safetensors"), *USUAL])

    errors = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(errors) == 1
    assert str(source) in errors[0]
    assert sentence in errors[0]
    assert list(tmp_path.iterdir()) == [source]


def test_code_in_a_checkpoint_does_not_run(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pickle that calls something is refused before it does, with the cure for a checkpoint one trusts."""
    source, trace = tmp_path / "trap.pth", tmp_path / "ran"
    torch.save({"state_dict": state, "meta": Runs(trace)}, source)

    status = main([str(source), "--out", str(tmp_path / "mine.safetensors"), *USUAL])

    assert status == 2
    assert "save its state_dict alone" in capsys.readouterr().err
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_refuses_a_truncated_file(
    latest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    """A download that broke off is named as damaged."""
    whole, source = latest.read_bytes(), tmp_path / "cut.pth"
    source.write_bytes(whole[: int(share * len(whole))])

    status = main([str(source), "--out", str(tmp_path / "mine.safetensors"), *USUAL])

    assert status == 2
    assert f"{source} is damaged" in capsys.readouterr().err


def test_refuses_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong path is named."""
    status = main([str(tmp_path / "gone.pth"), "--out", str(tmp_path / "mine.safetensors"), *USUAL])

    assert status == 2
    assert f"there is no checkpoint at {tmp_path / 'gone.pth'}" in capsys.readouterr().err


@given(data=st.data(), is_zip=st.booleans())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_refused_or_read(tmp_path: Path, data: st.DataObject, is_zip: bool) -> None:
    """However a file was cut or overwritten, it is refused as such or still holds tensors."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a.b": torch.ones(7)}}, buffer, _use_new_zipfile_serialization=is_zip)
    content = bytearray(buffer.getvalue())
    place = data.draw(st.integers(0, len(content) - 1))
    damage = data.draw(st.sampled_from([b"", b"\0", b"\xff", pickle.STOP, pickle.POP, pickle.REDUCE]))
    path = tmp_path / "damaged.pth"
    path.write_bytes(content[:place] + damage + (content[place + 1 :] if damage else b""))

    try:
        values = list(read_checkpoint(path).state.values())
    except ArtefactError:
        values = []

    assert all(isinstance(value, Tensor) for value in values)
