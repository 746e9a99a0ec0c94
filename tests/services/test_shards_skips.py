"""What happens to a run whose shards cannot all be read."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shard_making import encoded, noise, write_noise_shards, write_tar

import services.shards.reader
from samix.errors import ConfigError, ShardError
from services.shards.config import DataConfig
from services.shards.dataset import Batch
from services.shards.index import open_shards
from services.shards.loader import eval_loader, train_loader
from services.shards.reader import SampleReader
from services.shards.skips import draw_replacement

NUM_SAMPLES = 60


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(services.shards.reader, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))


@pytest.fixture
def config(tmp_path):
    """60 pictures in three shards with an index; up to 25 may be skipped."""
    write_noise_shards(tmp_path, [25, 25, 10])
    names = [f"noise-{number:06d}.tar" for number in range(3)]
    entries = [
        {"shard": name, "samples": count, "bytes": (tmp_path / name).stat().st_size}
        for name, count in zip(names, [25, 25, 10], strict=True)
    ]
    tmp_path.joinpath("index.json").write_text(json.dumps({"splits": {"train": entries}}))
    pattern = str(tmp_path / "noise-{000000..000002}.tar")
    return DataConfig(
        train=pattern,
        val=pattern,
        num_classes=3,
        image_size=8,
        augment="none",
        global_batch=12,
        num_workers=0,
        skip_budget=25,
    )


def spoil(shard: Path, *samples: int) -> None:
    """Overwrite pictures of a shard in place."""
    content = shard.read_bytes()
    for sample in samples:
        picture = encoded(noise(sample))
        assert content.count(picture) == 1
        content = content.replace(picture, bytes(len(picture)))
    shard.write_bytes(content)


def epoch_of(config: DataConfig, epoch: int = 0, rank: int = 0, world_size: int = 1) -> tuple[list[Batch], int]:
    with train_loader(config, seed=1, rank=rank, world_size=world_size) as loader:
        loader.set_epoch(epoch)
        return list(loader), loader.skipped


def check_pictures(batches: list[Batch]) -> None:
    """Each row is the picture of the position that it claims to be."""
    for batch in batches:
        for row, position in enumerate(batch.positions.tolist()):
            assert torch.equal(batch.images[row].permute(1, 2, 0), torch.from_numpy(noise(position)))
            assert batch.labels[row] == position % 3


def test_others_take_the_place_of_damaged_pictures(config, tmp_path):
    """Batches stay full and hold what their positions say; the damaged pictures are counted."""
    spoil(tmp_path / "noise-000000.tar", 3, 7)

    batches, skipped = epoch_of(config)

    positions = torch.cat([batch.positions for batch in batches])
    missing = {sample.position for batch in batches for sample in batch.skipped}
    assert [len(batch) for batch in batches] == [12] * 5
    assert missing == {3, 7}
    assert skipped == 2
    assert not {3, 7} & set(positions.tolist())
    check_pictures(batches)


@pytest.mark.parametrize("damage", ["missing", "truncated", "another size"])
def test_a_shard_that_cannot_be_used_is_skipped(config, tmp_path, damage):
    """A shard of the index that is missing, cut or of another size costs its samples, and no step."""
    shard = tmp_path / "noise-000001.tar"
    content = shard.read_bytes()
    shard.unlink()
    if damage != "missing":
        shard.write_bytes(content[:5000] if damage == "truncated" else content + bytes(512))

    batches, skipped = epoch_of(config)

    assert [len(batch) for batch in batches] == [12] * 5
    assert skipped == 25
    assert not set(range(25, 50)) & set(torch.cat([batch.positions for batch in batches]).tolist())
    check_pictures(batches)


def test_without_a_budget_such_a_shard_stops_the_run_at_once(config, tmp_path):
    """With a budget of 0 a missing shard is refused when the set is opened, as is one that no index counts."""
    (tmp_path / "noise-000001.tar").unlink()

    with pytest.raises(ShardError, match=r"no shard matches '.*noise-000001.tar'"):
        epoch_of(dataclasses.replace(config, skip_budget=0))
    (tmp_path / "index.json").unlink()
    with pytest.raises(ShardError, match=r"no shard matches '.*noise-000001.tar'"):
        epoch_of(config)


def test_without_a_budget_the_first_damaged_picture_ends_the_run(config, tmp_path):
    """With a budget of 0 the sentence of the first damaged picture is the error."""
    spoil(tmp_path / "noise-000002.tar", 55)

    with pytest.raises(ShardError, match=r"^sample 0055 of .*noise-000002.tar is no JPEG, PNG or WebP image"):
        epoch_of(dataclasses.replace(config, skip_budget=0))


def test_a_spent_budget_ends_the_run(config, tmp_path):
    """One sample more than the budget is an error with the count, the reason and the cure; each epoch has its own."""
    spoil(tmp_path / "noise-000000.tar", 1, 2, 3)

    with train_loader(dataclasses.replace(config, skip_budget=3), seed=1) as loader:
        for epoch in range(2):
            loader.set_epoch(epoch)
            assert len(list(loader)) == loader.steps_per_epoch
        total = loader.skipped
    with pytest.raises(ShardError) as caught:
        epoch_of(dataclasses.replace(config, skip_budget=2))

    assert total == 6
    assert str(caught.value).startswith("rank 0 could not read 3 samples of epoch 0, the last because sample 000")
    assert str(caught.value).endswith("skip-budget allows 2: repair the shards or raise it")


def test_each_reason_is_logged_once(config, tmp_path, caplog):
    """A missing shard is one line, not one for each of its samples; the epoch ends with the total."""
    (tmp_path / "noise-000001.tar").unlink()

    _, skipped = epoch_of(config)

    lines = [record for record in caplog.records if record.levelno == logging.WARNING]
    events = [record.getMessage() for record in lines]
    assert events == ["shard_unusable", "sample_skipped", "samples_skipped"]
    assert "noise-000001.tar cannot be read (No such file or directory)" in vars(lines[1])["reason"]
    assert vars(lines[2])["samples"] == skipped


@pytest.mark.slow
def test_workers_change_nothing_about_replacements(config, tmp_path):
    """However many workers read, the same samples are skipped and the same ones take their place."""
    spoil(tmp_path / "noise-000000.tar", 3, 4, 5)
    (tmp_path / "noise-000001.tar").unlink()
    config = dataclasses.replace(config, skip_budget=28)

    alone, _ = epoch_of(config, 2)
    by_workers, _ = epoch_of(dataclasses.replace(config, num_workers=2), 2)

    assert [batch.skipped for batch in alone] == [batch.skipped for batch in by_workers]
    for ours, theirs in zip(alone, by_workers, strict=True):
        assert torch.equal(ours.positions, theirs.positions)
        assert torch.equal(ours.images, theirs.images)


def test_ranks_change_nothing_about_replacements(config, tmp_path):
    """Two ranks together read what one would read, and take as many steps."""
    spoil(tmp_path / "noise-000000.tar", 3, 4, 5)

    alone, _ = epoch_of(config)
    halves = [epoch_of(config, rank=rank, world_size=2)[0] for rank in range(2)]

    for step, whole in enumerate(alone):
        assert torch.equal(torch.cat([half[step].positions for half in halves]), whole.positions)
        assert torch.equal(torch.cat([half[step].images for half in halves]), whole.images)


def test_evaluation_skips_nothing(config, tmp_path):
    """A damaged sample ends an evaluation whatever the budget, and the sentence says why."""
    spoil(tmp_path / "noise-000000.tar", 3)

    with eval_loader(config) as loader, pytest.raises(ShardError, match=r"sample 0003 .*\(evaluation skips nothing: "):
        list(loader)


def test_a_label_beyond_the_classes_is_never_skipped(config, tmp_path):
    """A label that the model has no output for is a wrong flag, which no budget hides."""
    with pytest.raises(ConfigError, match=r"but there are 2 classes \(0 to 1\); raise num-classes"):
        epoch_of(dataclasses.replace(config, num_classes=2))


def test_when_nothing_can_be_read_the_error_is_raised(tmp_path, config):
    """A place in a batch that finds no readable sample in a bounded number of draws ends the run."""
    path = write_tar(tmp_path / "bad.tar", {"1.png": b"x", "1.cls": b"0"})
    hopeless = dataclasses.replace(config, train=str(path), global_batch=1, skip_budget=1000)

    with pytest.raises(ShardError, match=r"sample 1 of .*bad.tar is no JPEG"):
        epoch_of(hopeless)


def test_a_shard_that_comes_back_is_read_again(config, tmp_path):
    """A shard that could not be used in one epoch is tried again in the next."""
    shard, aside = tmp_path / "noise-000001.tar", tmp_path / "aside"
    shard.rename(aside)

    with train_loader(config, seed=1) as loader:
        list(loader)
        before = loader.skipped
        aside.rename(shard)
        loader.set_epoch(1)
        list(loader)
        after = loader.skipped

    assert before == 25
    assert after == before


def test_a_refused_read_is_tried_again(config, monkeypatch):
    """What a disk refuses three times and then gives costs nothing; a fourth refusal is the error, with its reason."""
    reads, refusals = services.shards.reader.os.pread, [4]

    def flaky(fd, size, offset):
        if refusals[0] > 0:
            refusals[0] -= 1
            raise OSError(5, "Input/output error")
        return reads(fd, size, offset)

    with SampleReader(open_shards(config.train)) as reader:
        monkeypatch.setattr(services.shards.reader.os, "pread", flaky)
        with pytest.raises(ShardError, match=r"noise-000000.tar cannot be read \(Input/output error\); fetch or write"):
            reader.read(0)
        refusals[0] = 3
        sample = reader.read(0)

    assert sample.image == encoded(noise(0))


def test_too_many_open_files_are_no_fault_of_the_shard(config, monkeypatch):
    """What the machine lacks is neither retried nor skipped."""

    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(services.shards.reader.os, "pread", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        epoch_of(config)


@given(
    num_samples=st.integers(1, 1000),
    seed=st.integers(0, 2**64),
    epoch=st.integers(0, 500),
    position=st.integers(0, 10**7),
)
def test_replacements_are_drawn_from_the_whole_set(num_samples, seed, epoch, position):
    """A replacement is a position of the set, the same each time; another attempt may be another one."""
    draws = [
        draw_replacement(num_samples, seed=seed, epoch=epoch, position=position, attempt=attempt)
        for attempt in [*range(20), *range(20)]
    ]

    assert draws[:20] == draws[20:]
    assert all(0 <= draw < num_samples for draw in draws)
    assert num_samples < 100 or len(set(draws)) > 5
