"""A checkpoint is whole or refused, and never runs code."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samix.errors import ConfigError
from trainer.checkpoint import BEST, CheckpointFolder, load_checkpoint, save_checkpoint


class Hostile:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self._path),)


def test_comes_back_as_it_was(tmp_path: Path):
    """Tensors and plain values come back, and nothing else is left in the folder."""
    path = tmp_path / "checkpoint.pt"

    save_checkpoint(path, {"epoch": 3, "model": {"weight": torch.arange(4.0)}})
    state = load_checkpoint(path)

    assert state["epoch"] == 3
    assert torch.equal(state["model"]["weight"], torch.arange(4.0))
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_full_disk_leaves_the_old_one(tmp_path: Path):
    """When the disk is full while saving, the old checkpoint stays, and the error names the file."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})
    (tmp_path / "checkpoint.pt.partial").symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space left on device") as failure:
        save_checkpoint(path, {"epoch": 2, "model": torch.zeros(100_000)})

    assert failure.value.filename == str(path)
    assert load_checkpoint(path)["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_values_that_cannot_be_saved_leave_the_old_one(tmp_path: Path):
    """A failure in the middle of writing leaves the old checkpoint and no half-written file."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})

    with pytest.raises(AttributeError):
        save_checkpoint(path, {"epoch": 2, "hook": lambda: None})

    assert load_checkpoint(path)["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_remains_of_killed_writes_go(tmp_path: Path):
    """What a process left that was killed in saving goes with the next checkpoint, or else would fill the disk."""
    folder = CheckpointFolder(tmp_path, keep=2)
    (tmp_path / "epoch-0000-step-0000007.pt.partial").write_bytes(b"half")

    path = folder.save({}, epoch=0, step=9)

    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_best_may_be_marked_again(tmp_path: Path):
    """A run killed after it marked its best checkpoint marks it again, and later another: two files are there."""
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save({}, epoch=0, step=9)
    folder.mark_newest_best()
    folder.mark_newest_best()

    newest = folder.save({}, epoch=1, step=9)

    assert sorted(entry.name for entry in tmp_path.iterdir()) == [BEST, newest.name]


def test_missing(tmp_path: Path):
    """A missing file is named."""
    with pytest.raises(ConfigError, match=r"cannot read checkpoint .*gone.pt \(No such file or directory\)"):
        load_checkpoint(tmp_path / "gone.pt")


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x05\x06", pickle.dumps({"format": 1})])
def test_foreign_bytes(tmp_path: Path, content: bytes):
    """A file of another kind is refused in one sentence."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match="is damaged or no checkpoint of this trainer"):
        load_checkpoint(path)


@pytest.mark.parametrize("state", [{"epoch": 1}, {"format": 99}, [1, 2]])
def test_foreign_checkpoint(tmp_path: Path, state: object):
    """A torch file of another program or format is refused."""
    path = tmp_path / "checkpoint.pt"
    torch.save(state, path)

    with pytest.raises(ConfigError, match="is no checkpoint of format 3"):
        load_checkpoint(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_cut_anywhere(tmp_path: Path, share: float):
    """A checkpoint cut at any byte is refused."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"model": torch.arange(300.0)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(ConfigError):
        load_checkpoint(path)


def test_a_flipped_bit_in_the_weights(tmp_path: Path):
    """One changed byte among the weights is noticed."""
    path = tmp_path / "checkpoint.pt"
    weights = torch.arange(300.0)
    save_checkpoint(path, {"model": weights})
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes()) + 600] ^= 1
    path.write_bytes(content)

    with pytest.raises(ConfigError, match="is damaged"):
        load_checkpoint(path)


def test_no_code_is_run(tmp_path: Path):
    """A checkpoint that holds code is refused without running it."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 3, "model": Hostile(tmp_path / "owned")}, path)

    with pytest.raises(ConfigError, match="is damaged or no checkpoint"):
        load_checkpoint(path)

    assert not (tmp_path / "owned").exists()
