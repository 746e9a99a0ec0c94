"""`python -m benchmarks.input`: what it measures, what it reports, and what it refuses."""

import gc
import json
import subprocess
import sys

import pytest
from shard_making import encoded, noise, write_tar

from benchmarks.input import LIMIT, main
from benchmarks.input_loaders import OURS, openers, repeat_shards
from benchmarks.input_report import summarise, table
from benchmarks.turns import Turn, running


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    members: dict[str, bytes] = {}
    for number in range(8):
        members[f"{number}.jpg"] = encoded(noise(number, 60, 80), "JPEG")
        members[f"{number}.cls"] = str(number % 2).encode()
    return str(write_tar(tmp_path_factory.mktemp("photos") / "photos-0.tar", members))


def turns(*images_per_s: float) -> list[Turn]:
    return [Turn(images=64, cpu_s=64 / speed, wall_s=128 / speed) for speed in images_per_s]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves the shard it was in
def test_every_loader_yields_batches_of_the_same_kind(photos, tmp_path):
    """Ours and the peers load uint8 [64, 3, 224, 224], beyond the end of an epoch."""
    shards = repeat_shards(photos, tmp_path, 9)

    loaders = {name: start() for name, start in openers(shards, num_workers=0).items()}
    batches = {name: [next(loader) for _ in range(3)] for name, loader in loaders.items()}

    while loaders:
        loaders.popitem()[1].close()
    gc.collect()  # while the warning is ignored
    assert next(iter(batches)) == OURS
    assert {(str(batch.dtype), *batch.shape) for taken in batches.values() for batch in taken} == {
        ("torch.uint8", 64, 3, 224, 224)
    }


@pytest.mark.slow
def test_a_workers_time_counts(photos, tmp_path):
    """Decoding in a worker is charged to the loader, which is stopped between its turns."""
    shards = repeat_shards(photos, tmp_path, 40)
    start = openers(shards, num_workers=1)[OURS]

    with running(start) as runner:
        runner.take_turn(3)
        turn = runner.take_turn(6)

    assert turn.images == 6 * 64
    assert 0.25 * turn.wall_s < turn.cpu_s  # 384 pictures to decode, and hardly anything in this process
    assert turn.cpu_s > 6 * 64 * 0.0001


def test_ratios_are_taken_within_a_round_to_the_fastest_peer():
    """A slow round slows both; the median of the rounds' ratios counts, against the better peer."""
    found = summarise(0, {OURS: turns(300, 150, 290), "slow": turns(100, 50, 100), "fast": turns(200, 100, 200)})

    assert found["fastest_peer"] == "fast"
    assert found["ratio_rounds"] == [1.5, 1.5, 1.45]
    assert found["ratio"] == 1.5
    assert found["loaders"][OURS] == {"images_per_cpu_s": 290.0, "images_per_wall_s": 145.0}


def test_the_table_says_whether_the_promise_is_kept():
    """Speed, ratio and verdict of each setting stand in the table."""
    kept = summarise(0, {OURS: turns(300), "peer": turns(200)})
    missed = summarise(1, {OURS: turns(220), "peer": turns(200)})

    lines = table([kept, missed], LIMIT).splitlines()

    assert lines[3] == "    1.500 of peer (1.500 to 1.500), limit 1.25: ok"
    assert lines[6] == "    1.100 of peer (1.100 to 1.100), limit 1.25: too low"
    assert lines[1].split() == [OURS, "0", "300", "150", "3.333"]


@pytest.mark.slow
def test_the_program_measures_and_judges(photos, tmp_path):
    """It writes its figures, and its status says whether every ratio reached the limit."""
    out = tmp_path / "new" / "input.json"
    args = ["--shards", photos, "--rounds", "1", "--batches", "3", "--repeats", "40", "--json", str(out)]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.input", *args], capture_output=True, text=True, timeout=110, check=False
    )

    report = json.loads(out.read_text())
    assert [case["num_workers"] for case in report["cases"]] == [0, 1]
    assert done.returncode == int(any(case["ratio"] < LIMIT for case in report["cases"])), done.stderr
    assert ("error: a ratio is below" in done.stderr) == bool(done.returncode)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rounds", "0"], "rounds must lie in 1..99, got 0"),
        (["--batches", "2"], "batches must lie in 3..999, got 2"),
        (["--repeats", "0"], "repeats must lie in 1..999, got 0"),
        (["--json", "figures.txt"], "json must name a file that ends in .json, got 'figures.txt'"),
    ],
)
def test_bad_input_is_one_sentence(args, words, capsys):
    """A setting that cannot be is refused with its value, status 2."""
    status = main(["--shards", "photos.tar", *args])

    assert status == 2
    assert words in capsys.readouterr().err


def test_shards_without_photographs_are_refused(tmp_path, capsys):
    """Pictures that the peers would not read, and shards that are not here, are named, status 2."""
    path = write_tar(tmp_path / "png.tar", {"0.png": encoded(noise(0)), "0.cls": b"0"})

    statuses = [main(["--shards", shards, "--json", f"{tmp_path}/i.json"]) for shards in (str(path), "http://x/a.tar")]

    err = capsys.readouterr().err
    assert statuses == [2, 2]
    assert f"error: {path} holds no .jpg" in err
    assert "error: shards must be local files, got http://x/a.tar; fetch it first" in err


def test_missing_shards_are_refused(tmp_path, capsys):
    """A pattern that matches nothing is named, status 2."""
    status = main(["--shards", f"{tmp_path}/none-*.tar", "--json", f"{tmp_path}/input.json"])

    assert status == 2
    assert "none-*.tar" in capsys.readouterr().err
