"""`samix shards --check`."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_making import encoded, noise, real_data, write_noise_shards, write_tar
from shard_server import serve_shards

from services.shards.check import Report, ShardTask, check_shard, check_shards, describe
from services.shards.cli import main
from services.shards.index_file import IndexEntry, read_index
from services.shards.remote import Patience
from services.shards.shard import Shard
from services.shards.sources import image_folder
from services.shards.writer import write_shards

IMAGE = encoded(noise(0))


@pytest.fixture
def folder(tmp_path):
    """A whole set: two classes, 14 pictures in three shards, and their index."""
    for label, name in enumerate(["cat", "dog"]):
        photos = tmp_path / "photos" / name
        photos.mkdir(parents=True)
        for number in range(5 + 4 * label):
            photos.joinpath(f"{number}.png").write_bytes(encoded(noise(10 * label + number)))
    write_shards(image_folder(tmp_path / "photos"), tmp_path / "set", samples_per_shard=5)
    return tmp_path / "set"


def check_one(path: Path, *, listed: bool = False, num_classes: int | None = None) -> Report:
    """Check a shard in this process."""
    index = read_index(str(path.parent / "index.json"), Patience()) if listed else None
    task = ShardTask(
        shard=Shard(address=str(path)),
        entry=index.entry(str(path)) if index else None,
        num_classes=num_classes,
        patience=Patience(),
    )
    return check_shard(task)


def test_a_whole_set_passes(folder, capsys):
    """A whole set is described in a short table, and the verb ends with 0."""
    status = main(["--check", str(folder / "*.tar")])

    out = capsys.readouterr().out
    assert status == 0
    assert "14 samples in 3 shards" in out
    assert "2 classes, no problems" in out
    assert [line.split() for line in out.splitlines()[1:]] == [["0", "cat", "5"], ["1", "dog", "9"]]


def test_problems_are_listed_with_shard_and_key(folder, capsys):
    """Everything that is wrong is listed, sorted, and the verb ends with 2."""
    first, second, third = sorted(folder.glob("*.tar"))
    content = first.read_bytes()
    start = content.index(b"\x89PNG")
    first.write_bytes(content[:start] + bytes(60) + content[start + 60 :])
    shutil.copy(third, folder / "photos-train-000009.tar")
    third.unlink()

    status = main(["--check", str(folder / "*.tar")])

    lines = capsys.readouterr().out.splitlines()
    problems = [line.strip() for line in lines if line.startswith(f"  {folder}")]
    assert status == 2
    assert "4 problems" in lines[0]
    assert problems[0].startswith(f"{first}: sha256 ")
    assert problems[1].startswith(f"{first}, sample 00000000: sample 00000000 of {first} is no JPEG")
    assert problems[2].startswith(f"{third}: {folder}/index.json lists it, but it is not there")
    assert problems[3].startswith(f"{folder}/photos-train-000009.tar: {folder}/index.json does not list it")
    assert str(second) not in "".join(problems)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ({"samples": 4}, "samples 5, its index says 4"),
        ({"bytes": 9}, r"bytes \d+, its index says 9"),
        ({"sha256": "f" * 64}, "sha256 .*, its index says ffff"),
    ],
)
def test_the_index_is_compared(folder, damage, problem):
    """Counts, bytes and checksums of the index are those of the shards."""
    path = min(folder.glob("*.tar"))
    index = json.loads((folder / "index.json").read_text())
    index["splits"]["train"]["shards"][0] |= damage
    (folder / "index.json").write_text(json.dumps(index))

    report = check_one(path, listed=True)

    assert [found.key for found in report.problems] == [""]
    assert re.search(problem, report.problems[0].sentence)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("members", "keys", "words"),
    [
        ({"1.png": IMAGE, "2.png": IMAGE, "3.png": IMAGE, "3.cls": b"0"}, ["1", "2"], r"has no \d.cls"),
        ({"1.cls": b"0", "3.png": IMAGE, "3.cls": b"0"}, ["1"], r"has no 1.\(jpg"),
        ({"1.png": IMAGE, "1.jpg": IMAGE, "1.cls": b"0"}, ["1"], "for one sample"),
        ({"1.png": IMAGE, "1.cls": b"cat"}, ["1"], "must be a class number"),
        ({"1.png": IMAGE, "1.cls": b"7"}, ["1"], "label 7 has no name, the index has 3"),
        ({"1.png": IMAGE[:-40], "1.cls": b"1"}, ["1"], "cannot be decoded"),
        ({}, [""], "holds no samples"),
    ],
)
def test_every_sample_needs_picture_and_label(tmp_path, members, keys, words):
    """A sample without picture or label, or with one that cannot be used, is a problem of its key; all are found."""
    path = write_tar(tmp_path / "a.tar", members)

    report = check_one(path, num_classes=3)

    assert [problem.key for problem in report.problems] == keys
    assert all(re.search(words, problem.sentence) for problem in report.problems)


@pytest.mark.parametrize(("spoil", "words"), [(truncate, "again"), (Path.unlink, "No such file")])
def test_a_shard_that_cannot_be_read_is_a_problem(tmp_path, spoil: Callable[[Path], None], words):
    """A truncated or vanished shard is one problem, the others are still checked."""
    write_noise_shards(tmp_path, [3])
    spoil(tmp_path / "noise-000000.tar")

    report = check_one(tmp_path / "noise-000000.tar")

    assert [problem.key for problem in report.problems] == [""]
    assert words in report.problems[0].sentence


def test_many_classes_are_summed_up():
    """Beyond twenty classes the table says the smallest, the median and the largest; unnamed and empty ones count."""
    report = Report(shards=1, samples=0)
    report.labels.update({label: label for label in range(1, 30)})

    lines = describe(report, [f"c{label}" for label in range(31)]).splitlines()

    assert lines[1].strip() == "samples per class: smallest 0 (c0), median 14, largest 29 (c29)"
    assert len(lines) == 2


def test_remote_shards_are_checked_too(folder):
    """A set behind HTTP is fetched and checked against the index beside it."""
    with serve_shards(folder) as site:
        report, classes = check_shards([f"{site.url}/photos-train-{{000000..000002}}.tar"])

    assert report.problems == []
    assert (report.samples, classes) == (14, ("cat", "dog"))


def test_a_check_looks_at_what_an_address_gives_now(folder):
    """A remote set that was written anew is fetched anew, whatever was fetched before."""
    with serve_shards(folder) as site:
        pattern = [f"{site.url}/photos-train-{{000000..000002}}.tar"]
        check_shards(pattern, num_processes=1)
        write_shards(image_folder(folder.parent / "photos", seed=1), folder, samples_per_shard=5, overwrite=True)
        report, _ = check_shards(pattern, num_processes=1)

    assert report.problems == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "write `samix shards SOURCE --out DIR` or `samix shards --check SHARDS`, got nothing"),
        (["digits"], "or `samix shards --check SHARDS`, got digits"),
        (["digits", "--check", "a.tar"], "--check reads shards and writes nothing; leave out digits"),
        (["--out", "x", "--check", "a.tar"], "leave out --out"),
        (["--check", "gone.tar"], "no shard matches 'gone.tar'"),
    ],
)
def test_what_to_do_must_be_clear(capsys, argv, words):
    """Flags that contradict each other, and shards that are not there, are one sentence and status 2."""
    status = main(argv)

    assert status == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_sets_are_whole():
    """The sets other tests use pass the check."""
    root = real_data()
    for name in ("cifar100-20c", "imagenet-like/native", "imagenet-like/imagenette224"):
        report, _ = check_shards([f"{root}/{name}/*.tar"], num_processes=2)
        assert report.problems == []


def test_an_entry_without_size_or_checksum_promises_less(tmp_path):
    """Where an index gives only a count, only the count is compared."""
    write_noise_shards(tmp_path, [3])
    path = tmp_path / "noise-000000.tar"
    entry = IndexEntry(samples=3, num_bytes=None, sha256="")

    report = check_shard(ShardTask(shard=Shard(address=str(path)), entry=entry, num_classes=None, patience=Patience()))

    assert report.problems == []
    assert report.labels.total() == 3
