import dataclasses
import json
import math
import multiprocessing
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from shard_making import encoded, noise, real_data, write_noise_shards, write_tar

from samix.errors import ConfigError, ShardError
from services.shards.config import DataConfig
from services.shards.dataset import Batch
from services.shards.loader import eval_loader, train_loader


@pytest.fixture
def config(tmp_path):
    """60 pictures in three shards, loaded in this process."""
    pattern = write_noise_shards(tmp_path, [25, 25, 10])
    return DataConfig(
        train=pattern, val=pattern, num_classes=3, image_size=8, padding=2, global_batch=12, num_workers=0
    )


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.positions, b.positions)
        for a, b in zip(first, second, strict=True)
    )


def test_a_batch_holds_images_labels_and_positions(config):
    """Batches are uint8 [B, 3, S, S], int64 [B], int64 [B], and each row is the sample of its position."""
    with train_loader(dataclasses.replace(config, augment="none"), seed=1) as loader:
        batch = next(iter(loader))

    assert (batch.images.shape, batch.images.dtype) == ((12, 3, 8, 8), torch.uint8)
    assert (batch.labels.dtype, batch.positions.dtype) == (torch.int64, torch.int64)
    for row, position in enumerate(batch.positions.tolist()):
        assert torch.equal(batch.images[row].permute(1, 2, 0), torch.from_numpy(noise(position)))
        assert batch.labels[row] == position % 3


def test_an_epoch_can_be_repeated_and_another_differs(config):
    """The same epoch gives the same batches again, the next one another order and other crops."""
    with train_loader(config, seed=1) as loader:
        first = list(loader)
        loader.set_epoch(1)
        second = list(loader)
        loader.set_epoch(0)
        again = list(loader)

    assert len(first) == loader.steps_per_epoch == 5
    assert same(first, again)
    assert not same(first, second)


def test_ranks_share_the_batch_of_one(config):
    """Two ranks together see, step by step, the very pixels that one rank sees."""
    with train_loader(config, seed=1) as loader:
        alone = list(loader)
    parts = []
    for rank in range(2):
        with train_loader(config, seed=1, rank=rank, world_size=2) as loader:
            parts.append(list(loader))

    for step, whole in enumerate(alone):
        assert torch.equal(torch.cat([part[step].positions for part in parts]), whole.positions)
        assert torch.equal(torch.cat([part[step].images for part in parts]), whole.images)


def test_a_resumed_epoch_continues_as_if_never_stopped(config):
    """Starting at a later step gives the remaining batches, pixels included, also with another number of ranks."""
    with train_loader(config, seed=1) as loader:
        loader.set_epoch(2)
        whole = list(loader)
        loader.set_epoch(2, first_step=3)
        rest = list(loader)

        assert len(loader) == 2
    assert same(whole[3:], rest)


@pytest.mark.slow
def test_workers_change_nothing(config):
    """Worker processes give the same batches in the same order, over several epochs and after a break."""
    with train_loader(config, seed=1) as loader:
        loader.set_epoch(1)
        expected = list(loader)
    state = torch.random.get_rng_state()

    with train_loader(dataclasses.replace(config, num_workers=2), seed=1) as loader:
        for _ in loader:
            break
        loader.set_epoch(1)
        batches = list(loader)

    assert same(batches, expected)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
def test_an_error_in_a_worker_keeps_its_sentence(tmp_path, config):
    """What a worker finds wrong with the data reaches the parent as it was, without torch's traceback text."""
    path = write_tar(tmp_path / "bad.tar", {"1.png": encoded(noise(0)), "1.cls": b"7"})
    bad = dataclasses.replace(config, train=str(path), num_workers=1, global_batch=1)

    with train_loader(bad, seed=1) as loader, pytest.raises(ConfigError) as caught:
        list(loader)

    assert str(caught.value) == (f"sample 1 of {path} has label 7, but there are 3 classes (0 to 2); raise num-classes")


@pytest.mark.slow
def test_a_killed_program_leaves_no_workers(config):
    """When a program that loads is killed, its workers end too: they hold the program's output open no longer."""
    script = (
        "import sys\n"
        "from pathlib import PosixPath\n"
        "from services.shards.config import DataConfig\n"
        "from services.shards.loader import train_loader\n"
        f"loader = train_loader({dataclasses.replace(config, num_workers=2)!r}, seed=1)\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
        "print('loading', flush=True)\n"
        "sys.stdin.read()\n"
    )
    program = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "loading\n"

    program.kill()
    _, _ = program.communicate(timeout=20)  # returns when the last process that shares stdout has ended

    assert program.returncode == -signal.SIGKILL


def test_a_shard_that_vanishes_is_named(config, tmp_path):
    """A shard that cannot be opened any more is an error with its name."""
    with train_loader(config, seed=1) as loader:
        (tmp_path / "noise-000001.tar").unlink()

        with pytest.raises(ShardError, match=r"noise-000001\.tar cannot be read \(No such file"):
            list(loader)


def test_evaluation_sees_every_sample_once(config):
    """All ranks together evaluate each sample once, unaugmented, the last batches being smaller."""
    seen: list[int] = []
    for rank in range(4):
        with eval_loader(config, rank=rank, world_size=4) as loader:
            for batch in loader:
                seen += batch.positions.tolist()
                assert torch.equal(batch.images[0].permute(1, 2, 0), torch.from_numpy(noise(int(batch.positions[0]))))

    assert sorted(seen) == list(range(60))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"global_batch": 61, "lanes": 1}, "60 samples do not fill a global batch of 61"),
        ({"lanes": 5}, "5 lanes do not divide the global batch 12"),
        ({"train": "gone.tar"}, "no shard matches 'gone.tar'"),
    ],
)
def test_what_cannot_be_loaded_is_refused_at_once(config, change, words):
    """Sizes that do not fit and missing shards are errors before the first batch."""
    with pytest.raises((ConfigError, ShardError), match=words):
        train_loader(dataclasses.replace(config, **change), seed=1)


def test_a_negative_seed_is_refused(config):
    """Seeds are not negative."""
    with pytest.raises(ConfigError, match="seed must not be negative, got -1"):
        train_loader(config, seed=-1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must not be negative, got -1"),
        ({"padding": 8}, "padding must be smaller than image_size 8, got 8"),
        ({"crop_scale": (0.5, 0.1)}, r"crop_scale must be two shares, .* got \(0.5, 0.1\)"),
        ({"skip_budget": -1}, "skip_budget must not be negative, got -1"),
        ({"cache_gb": 0.0}, "cache_gb must be positive and finite, got 0.0"),
        ({"cache_gb": math.inf}, "cache_gb must be positive and finite, got inf"),
        ({"cache_gb": math.nan}, "cache_gb must be positive and finite, got nan"),
        ({"eval_resize": 7}, "eval_resize must be 0 or at least image_size 8, got 7"),
    ],
)
def test_a_config_out_of_range_is_refused(config, change, words):
    """Each value of the config that makes no sense is refused with the value and the cure."""
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(config, **change)


@pytest.mark.parametrize("folder", ["imagenet-like/native", "imagenet-like/imagenette224"])
def test_real_photographs_load(folder):
    """Photographs of many sizes, some greyscale, train and evaluate at 64 pixels."""
    data = real_data() / folder
    config = DataConfig(
        train=f"{data}/*-train-*.tar",
        val=f"{data}/*-val-*.tar",
        num_classes=32,
        image_size=64,
        augment="resized_crop",
        eval_resize=72,
        global_batch=64,
        num_workers=0,
    )

    with train_loader(config, seed=0) as train, eval_loader(config) as val:
        batches = [next(iter(train)), next(iter(val))]

    for batch in batches:
        assert batch.images.shape == (64, 3, 64, 64)
        assert 60 < batch.images.float().mean() < 190
        assert np.unique(batch.labels).size > 5


@pytest.mark.parametrize("world_size", [1, 2])
def test_micro_batches_share_the_samples_of_a_step(config, world_size):
    """A step handed out in several batches holds the same samples in the same order."""
    with train_loader(config, seed=1, world_size=world_size) as loader:
        whole, steps = list(loader), loader.steps_per_epoch
    with train_loader(config, seed=1, world_size=world_size, micro_batches=3) as loader:
        parts = list(loader)

        assert loader.steps_per_epoch == steps
        assert len(loader) == len(parts) == 3 * steps
        loader.set_epoch(0, first_step=steps - 1)
        assert same(list(loader), parts[-3:])
    assert {len(batch) for batch in parts} == {12 // world_size // 3}
    for step, batch in enumerate(whole):
        of_step = parts[3 * step : 3 * step + 3]
        assert torch.equal(torch.cat([part.positions for part in of_step]), batch.positions)
        assert torch.equal(torch.cat([part.images for part in of_step]), batch.images)


@pytest.mark.parametrize("micro_batches", [0, 5])
def test_micro_batches_of_unequal_size_are_refused(config, micro_batches):
    """A number of batches that does not divide a rank's samples of a step is an error with both numbers."""
    words = f"cannot accumulate {micro_batches} batches of the 6 samples .*; choose a divisor of 6"
    with pytest.raises(ConfigError, match=words):
        train_loader(config, seed=1, world_size=2, micro_batches=micro_batches)


def test_closing_ends_the_workers_of_an_unfinished_epoch(config):
    """No worker outlives its loader, even while somebody still holds the epoch that was left in its middle."""
    before = set(multiprocessing.active_children())
    with train_loader(dataclasses.replace(config, num_workers=1), seed=1) as loader:
        batches = iter(loader)
        next(batches)
        workers = set(multiprocessing.active_children()) - before

    assert workers
    assert not workers & set(multiprocessing.active_children())
    assert list(batches) == []


def test_the_fingerprint_names_the_order(config, tmp_path):
    """Loaders whose order is the same have one fingerprint, whatever their ranks and workers; others differ."""

    def fingerprint(config, **options):
        with train_loader(config, seed=1, **options) as loader:
            return loader.fingerprint

    for name in ("more", "renamed", "moved"):
        (tmp_path / name).mkdir()
    more = write_noise_shards(tmp_path / "more", [25, 25, 11])
    renamed = write_noise_shards(tmp_path / "renamed", [25, 25, 10])
    (tmp_path / "renamed" / "noise-000000.tar").rename(tmp_path / "renamed" / "noise-000003.tar")
    moved = write_noise_shards(tmp_path / "moved", [25, 25, 10])
    alike = {fingerprint(config), fingerprint(config, world_size=2), fingerprint(config, micro_batches=2)}
    alike.add(fingerprint(dataclasses.replace(config, train=moved)))
    others = {
        fingerprint(dataclasses.replace(config, **change))
        for change in ({"global_batch": 6}, {"window": 1}, {"lanes": 1}, {"train": more}, {"train": renamed})
    }

    assert len(alike) == 1
    assert len(others) == 5
    assert not alike & others


def test_the_fingerprint_tells_shards_of_other_content(config, tmp_path):
    """Shards of the same names and sizes that an index gives other checksums are another set."""

    def fingerprint(digit: str) -> str:
        names = [f"noise-{number:06d}.tar" for number in range(3)]
        entries = [
            {"shard": name, "samples": count, "sha256": digit * 64}
            for name, count in zip(names, [25, 25, 10], strict=True)
        ]
        tmp_path.joinpath("index.json").write_text(json.dumps({"splits": {"train": entries}}))
        with train_loader(config, seed=1) as loader:
            return loader.fingerprint

    assert fingerprint("a") == fingerprint("a") != fingerprint("b")


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_one_shard_feeds_many_ranks_and_workers(tmp_path, num_workers):
    """Samples are dealt out, not shards: one shard gives 4 ranks with workers each sample of it once."""
    pattern = write_noise_shards(tmp_path, [48])
    config = DataConfig(
        train=pattern, val=pattern, num_classes=3, image_size=8, padding=2, global_batch=16, num_workers=num_workers
    )
    seen, steps = list[int](), set[int]()

    for rank in range(4):
        with train_loader(config, seed=1, rank=rank, world_size=4) as loader:
            batches = list(loader)
            steps.add(len(batches))
            seen += [position for batch in batches for position in batch.positions.tolist()]

    assert steps == {3}
    assert sorted(seen) == list(range(48))


@pytest.mark.parametrize(("num_classes", "words"), [(2, "raise num-classes to 3"), (4, "lower num-classes to 3")])
def test_another_number_of_classes_than_the_index_is_refused(config, tmp_path, num_classes, words):
    """A number of classes that differs from the index's is an error when the set is opened."""
    tmp_path.joinpath("index.json").write_text(json.dumps({"splits": {}, "classes": ["a", "b", "c"]}))
    wrong = dataclasses.replace(config, num_classes=num_classes)

    with pytest.raises(ConfigError, match=rf"lists 3 classes, but there are {num_classes} classes .*; {words}"):
        train_loader(wrong, seed=1)
    with pytest.raises(ConfigError, match=words):
        eval_loader(wrong)
