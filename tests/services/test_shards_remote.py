"""Shards that must be fetched: over HTTP, and from commands."""

import dataclasses
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from shard_making import encoded, noise, write_noise_shards
from shard_server import ShardSite, cut_short, held_until, overloaded, serve_shards, wrong_page

from samix.errors import ConfigError, ShardError
from services.shards.cache import ShardCache
from services.shards.config import DataConfig
from services.shards.index import ShardSet, open_shards
from services.shards.loader import train_loader
from services.shards.read_ahead import ReadAhead, first_uses
from services.shards.reader import SampleReader
from services.shards.remote import FetchFailed, Patience
from services.shards.shard import Shard, shard_name

COUNTS = [3, 2, 4]
NAMES = [f"noise-{number:06d}.tar" for number in range(3)]
BRACES = "noise-{000000..000002}.tar"


@pytest.fixture
def folder(tmp_path):
    """Three shards of nine pictures, without an index."""
    path = tmp_path / "shards"
    path.mkdir()
    write_noise_shards(path, COUNTS)
    return path


@pytest.fixture
def site(folder):
    with serve_shards(folder) as site:
        yield site


@pytest.fixture
def cache(tmp_path):
    """An empty cache that loses no time."""
    return ShardCache(folder=tmp_path / "cache", patience=Patience(silence_s=10, pauses_s=(0.0, 0.0, 0.0)))


def write_index(folder: Path, **changes: object) -> None:
    entries = [
        {
            "shard": name,
            "samples": count,
            "bytes": (folder / name).stat().st_size,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            **changes,
        }
        for name, count in zip(NAMES, COUNTS, strict=True)
    ]
    folder.joinpath("index.json").write_text(json.dumps({"splits": {"train": entries}}))


def read_all(shards: ShardSet) -> list[bytes]:
    with SampleReader(shards) as reader:
        return [reader.read(position).image for position in range(shards.total)]


def held(cache: ShardCache) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in cache.folder.iterdir()) if cache.folder.exists() else []


PICTURES = [encoded(noise(number)) for number in range(9)]


def test_with_an_index_nothing_is_fetched_before_it_is_read(site, folder, cache):
    """The counts of shards behind HTTP come from the index beside them; a shard is fetched with its first sample."""
    write_index(folder)

    shards = open_shards(f"{site.url}/{BRACES}", cache=cache)
    fetched_to_open = dict(site.requests)
    with SampleReader(shards) as reader:
        samples = [reader.read(position) for position in (3, 4, 3)]

    assert shards.samples == tuple(COUNTS)
    assert fetched_to_open == {"index.json": 1}
    assert site.requests == {"index.json": 1, NAMES[1]: 1}
    assert samples[1].image == PICTURES[4]
    assert str(samples[1]) == f"sample 0004 of {site.url}/{NAMES[1]}"


def test_without_an_index_every_shard_is_fetched_once(site, cache):
    """Shards that no index lists are fetched to be counted, then read from the cache."""
    shards = open_shards(f"{site.url}/{BRACES}", cache=cache)

    assert shards.samples == tuple(COUNTS)
    assert read_all(shards) == PICTURES
    assert [site.requests[name] for name in NAMES] == [1, 1, 1]


def test_a_command_is_a_shard(folder, cache):
    """pipe:COMMAND with braces is read as WebDataset does, and counted by the index that is named."""
    write_index(folder)

    shards = open_shards(f"pipe:cat {folder}/{BRACES}", cache=cache, index=str(folder / "index.json"))
    held_at_first = held(cache)

    assert held_at_first == []
    assert read_all(shards) == PICTURES


def test_an_index_may_be_named_by_url(site, folder, cache):
    """A named index may lie elsewhere, also behind HTTP."""
    write_index(folder)

    shards = open_shards(f"pipe:cat {folder}/{BRACES}", cache=cache, index=f"{site.url}/index.json")

    assert shards.samples == tuple(COUNTS)
    assert held(cache) == []


@pytest.mark.parametrize(
    ("index", "words"),
    [("gone.json", "there is no index .*gone.json"), ("index.json", "index .* does not list other.tar; correct")],
)
def test_a_named_index_must_fit(folder, cache, index, words):
    """An index that was named but is missing, or lists other shards, is an error."""
    write_index(folder)

    with pytest.raises(ShardError, match=words):
        open_shards("pipe:cat other.tar", cache=cache, index=str(folder / index))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://host/a/b-000001.tar", "b-000001.tar"),
        ("https://host/a/b.tar?token=x/y.tar", "b.tar"),
        ("pipe:aws s3 cp s3://bucket/train/b-000001.tar -", "b-000001.tar"),
        ("pipe:curl -s 'http://host/b.tar' || true", "b.tar"),
        ("a/b.tar", "b.tar"),
    ],
)
def test_an_index_knows_shards_by_their_file_names(address, name):
    """A URL, a command and a path name the same file of an index."""
    assert shard_name(address) == name


@pytest.mark.parametrize("fault", [cut_short, overloaded, wrong_page])
def test_a_passing_fault_is_tried_again(site, cache, fault):
    """A fetch that breaks off, is refused for now or brings a web page is repeated; only the whole shard is kept."""
    site.faults[NAMES[0]] = [fault, fault]

    shards = open_shards(f"{site.url}/{NAMES[0]}", cache=cache)

    assert read_all(shards) == PICTURES[:3]
    assert site.requests[NAMES[0]] == 3


@pytest.mark.parametrize(
    ("address", "words", "requests"),
    [
        ("{url}/gone.tar", "gone.tar answers 404 File not found; check the address", 1),
        ("http://127.0.0.1:1/a.tar", "cannot be fetched .*refused.*; check address and network", 0),
        ("http://127.0.0.1:port/a.tar", "is no address", 0),
        ("pipe:echo no such bucket >&2; exit 3", r"ended with status 3 \(no such bucket\); try it in a shell", 0),
        ("pipe:true", "is no complete tar file", 0),
        ("pipe:exec sleep 60", "gave no byte for 0.2 s", 0),
    ],
)
def test_what_cannot_be_fetched_is_named(site, cache, address, words, requests):
    """A fetch that fails for good is one sentence with the address and the cure, and leaves nothing in the cache."""
    cache = dataclasses.replace(cache, patience=Patience(silence_s=0.2, pauses_s=(0.0,)))

    with pytest.raises(ShardError, match=words):
        open_shards(address.format(url=site.url), cache=cache)

    assert site.requests["gone.tar"] == requests
    assert held(cache) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [({"sha256": "0" * 64}, "has checksum .*, its index says 0000"), ({"bytes": 7}, r"is \d+ bytes, its index says 7")],
)
def test_a_shard_unlike_its_index_is_refused(site, folder, cache, change, words):
    """Size and checksum are compared when a shard has been fetched."""
    write_index(folder, **change)
    shards = open_shards(f"{site.url}/{NAMES[0]}", cache=cache)

    with pytest.raises(ShardError, match=words):
        read_all(shards)

    assert held(cache) == []


def test_a_set_written_anew_is_fetched_anew(site, folder, cache):
    """When the index beside the shards changes, cached shards of the old set are not read."""
    write_index(folder)
    read_all(open_shards(f"{site.url}/{NAMES[0]}", cache=cache))
    (folder / NAMES[0]).write_bytes((folder / NAMES[1]).read_bytes() + bytes(1024))
    write_index(folder, samples=2)

    assert read_all(open_shards(f"{site.url}/{NAMES[0]}", cache=cache)) == PICTURES[3:5]


def test_without_checksums_the_size_tells_a_new_set(site, folder, cache):
    """A shard of another size than the cached one is fetched anew when the index says only sizes."""
    write_index(folder, sha256=None)
    read_all(open_shards(f"{site.url}/{NAMES[0]}", cache=cache))
    (folder / NAMES[0]).write_bytes((folder / NAMES[1]).read_bytes() + bytes(1024))
    write_index(folder, sha256=None, samples=2)

    assert read_all(open_shards(f"{site.url}/{NAMES[0]}", cache=cache)) == PICTURES[3:5]


def test_the_cache_keeps_its_limit_and_what_was_used_last(site, folder, cache):
    """Beyond its limit the shards used longest ago leave; foreign files in the folder stay."""
    write_index(folder)
    sizes = [(folder / name).stat().st_size for name in NAMES]
    cache = dataclasses.replace(cache, limit_bytes=sizes[0] + sizes[2])
    shards = open_shards(f"{site.url}/{BRACES}", cache=cache)
    cache.folder.mkdir()
    (cache.folder / "notes.txt").write_text("mine")
    for number in (0, 1):
        cache.open(shards.shards[number]).close()
        os.utime(cache._path(shards.shards[number]), (number, number))

    cache.open(shards.shards[0]).close()  # now 1 is the one used longest ago
    cache.open(shards.shards[2]).close()

    assert [cache.holds(shard) for shard in shards.shards] == [True, False, True]
    assert (cache.folder / "notes.txt").exists()


def test_a_shard_in_use_stays(site, folder, cache):
    """A shard that somebody reads is not removed, whatever the limit."""
    write_index(folder)
    cache = dataclasses.replace(cache, limit_bytes=max((folder / name).stat().st_size for name in NAMES))
    shards = open_shards(f"{site.url}/{BRACES}", cache=cache)

    with cache.open(shards.shards[0]):
        cache.open(shards.shards[1]).close()
        held_while_read = [cache.holds(shard) for shard in shards.shards]
    cache.open(shards.shards[2]).close()

    assert held_while_read == [True, True, False]
    assert [cache.holds(shard) for shard in shards.shards] == [False, False, True]


def test_a_shard_larger_than_the_cache_is_refused(site, folder, cache):
    """A limit below one shard is an error with both figures, before anything is fetched."""
    write_index(folder)
    shards = open_shards(f"{site.url}/{NAMES[0]}", cache=dataclasses.replace(cache, limit_bytes=1000))

    with pytest.raises(ConfigError, match=r"GB, but the cache may hold 1e-06; raise cache-gb"):
        read_all(shards)

    assert site.requests[NAMES[0]] == 0


def test_a_cache_that_cannot_be_written_is_named(site, tmp_path, cache):
    """A folder that cannot be made ends the run, it is no fault of a shard."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"cannot use the cache .*file/cache.*; choose another folder"):
        open_shards(f"{site.url}/{NAMES[0]}", cache=dataclasses.replace(cache, folder=tmp_path / "file" / "cache"))


def test_a_full_disk_is_no_fault_of_the_shard(cache):
    """What cannot be written is an error of the machine, never skipped."""
    (cache.folder).mkdir()
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from services.shards.cache import ShardCache\n"
        "from services.shards.shard import Shard\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "try:\n"
        f"    ShardCache(folder=Path({str(cache.folder)!r})).open(Shard(address='pipe:head -c 20000 /dev/zero'))\n"
        "except Exception as err:\n"
        "    print(type(err).__name__, err)\n"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert result.stdout.startswith(f"ConfigError cannot write to {cache.folder}/")
    assert "(File too large); make room, or choose another cache" in result.stdout
    assert list(cache.folder.iterdir()) == []


def test_processes_fetch_a_shard_once(site, folder, cache):
    """Two processes that want one shard at once fetch it once, and both read all of it."""
    write_index(folder)
    both_wait = threading.Event()
    site.faults[NAMES[0]] = [held_until(both_wait)]
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from services.shards.cache import ShardCache\n"
        "from services.shards.index import open_shards\n"
        "from services.shards.reader import SampleReader\n"
        f"shards = open_shards({site.url + '/' + NAMES[0]!r}, cache=ShardCache(folder=Path({str(cache.folder)!r})))\n"
        "print('open', flush=True)\n"
        "with SampleReader(shards) as reader:\n"
        "    print(len(reader.read(2).image), flush=True)\n"
    )
    programs = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]

    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "open\n"
    both_wait.set()
    outputs = [program.communicate(timeout=30)[0] for program in programs]

    assert outputs == [f"{len(PICTURES[2])}\n"] * 2
    assert site.requests[NAMES[0]] == 1
    assert held(cache) == [f"{NAMES[0]}.shard"]


def test_a_fetch_that_died_is_taken_over(site, cache):
    """What a killed process left half fetched is fetched anew; a living one is waited for, but not for ever."""
    shard = Shard(address=f"{site.url}/{NAMES[0]}")
    partial = cache._path(shard).with_suffix(".partial")
    partial.parent.mkdir()
    partial.write_bytes(b"half")
    impatient = dataclasses.replace(cache, patience=Patience(silence_s=0.1, pauses_s=()))

    with partial.open("rb") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        with pytest.raises(FetchFailed, match=r"another process fetches .* no byte for 0.2 s; end that process"):
            impatient.open(shard)
    with cache.open(shard) as file:
        content = file.readall()

    assert content[:5] == b"0000."
    assert held(cache) == [f"{NAMES[0]}.shard"]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_training_reads_remote_shards(site: ShardSite, folder, tmp_path, num_workers):
    """A loader gives the same batches from HTTP as from disk, and fetches each shard once per machine."""
    write_index(folder)
    local = DataConfig(
        train=str(folder / "*.tar"), val="", num_classes=3, image_size=8, global_batch=4, padding=2, num_workers=0
    )
    remote = dataclasses.replace(local, train=f"{site.url}/{BRACES}", cache=tmp_path / "cache", num_workers=num_workers)

    batches = []
    for config in (local, remote):
        with train_loader(config, seed=1) as loader:
            batches.append([batch for epoch in range(2) for batch in _epoch(loader, epoch)])

    assert [batch.positions.tolist() for batch in batches[0]] == [batch.positions.tolist() for batch in batches[1]]
    assert all((a.images == b.images).all() for a, b in zip(*batches, strict=True))
    assert {site.requests[name] for name in NAMES} == {1}


def _epoch(loader, epoch):
    loader.set_epoch(epoch)
    return list(loader)


def test_read_ahead_fetches_the_next_shards_only(site, folder, cache):
    """Shards come in the order of their first use, and not many more than the batches asked for need."""
    write_index(folder)
    shards = open_shards(f"{site.url}/{BRACES}", cache=cache)
    arrived = {name: threading.Event() for name in NAMES}
    for name, event in arrived.items():
        site.faults[name] = [lambda handler, content, event=event: (handler.answer(content), event.set())]
    batches = [[0, 1], [2, 0], [5, 6], [3, 5]]
    assert first_uses(shards, [np.array(batch) for batch in batches]) == [(0, 0), (2, 2), (3, 1)]

    with ReadAhead(shards, shards_ahead=1) as read_ahead:
        read_ahead.start([np.array(batch) for batch in batches])
        assert arrived[NAMES[0]].wait(10)
        assert arrived[NAMES[2]].wait(10)
        before = site.requests[NAMES[1]]
        read_ahead.reached(2)
        assert arrived[NAMES[1]].wait(10)

    assert before == 0


def test_read_ahead_ends_at_once(site, folder, cache):
    """Closing gives up what is being fetched, and leaves no thread and no partial file behind."""
    write_index(folder)
    release, entered = threading.Event(), threading.Event()
    shards = open_shards(f"{site.url}/{NAMES[0]}", cache=cache)

    def drip(handler, content):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:100])
        entered.set()
        release.wait(20)
        handler.wfile.write(content[100:])

    site.faults[NAMES[0]] = [drip]
    read_ahead = ReadAhead(shards)
    read_ahead.start([np.array([0])])
    assert entered.wait(10)
    closing = threading.Thread(target=read_ahead.close)
    closing.start()
    release.set()
    closing.join(10)

    assert not closing.is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
    assert held(cache) == []
