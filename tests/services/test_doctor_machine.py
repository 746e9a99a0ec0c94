"""What the doctor says of machines and containers that lack something."""

import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from services.doctor.findings import failure_of, surviving
from services.doctor.machine import (
    check_cache,
    check_compiler,
    check_malloc,
    check_open_files,
    check_processors,
    check_shared_memory,
)
from services.malloc import VARIABLES

Usage = namedtuple("Usage", "total used free")
MIB = 1 << 20


@pytest.mark.parametrize(("free_mib", "verdict"), [(64, "failure"), (65, "warning"), (1023, "warning"), (1024, "ok")])
def test_shared_memory(monkeypatch, free_mib, verdict):
    """What Docker gives by default does not hold the batches of workers; a gigabyte does."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(8192 * MIB, 0, free_mib * MIB))

    finding = check_shared_memory()

    assert finding.verdict == verdict
    assert f"{free_mib} MiB free" in finding.sentence
    assert ("--shm-size" in finding.cure) == (verdict != "ok")


def test_no_shared_memory_at_all(tmp_path: Path):
    """A missing /dev/shm is a failure that says how to do without."""
    finding = check_shared_memory(tmp_path / "shm")

    assert finding.verdict == "failure"
    assert "--data.num-workers 0" in finding.cure


@pytest.mark.parametrize(
    ("soft", "verdict"),
    [(100, "failure"), (512, "warning"), (1023, "warning"), (1024, "ok"), (resource.RLIM_INFINITY, "ok")],
)
def test_open_files(soft, verdict):
    """A tiny limit is a failure with the ways to raise it."""
    finding = check_open_files((soft, 4096))

    assert finding.verdict == verdict
    assert ("hard limit here: 4096" in finding.cure) == (verdict != "ok")


@pytest.mark.parametrize(
    ("files", "environ", "verdict"),
    [
        ({}, {}, "ok"),
        ({"cpu.max": "max 100000"}, {}, "ok"),
        ({"cpu.max": "50000 100000"}, {}, "warning"),
        ({"cpu.max": "50000 100000"}, {"OMP_NUM_THREADS": "1"}, "ok"),
        ({"cpu.max": "50000 100000"}, {"OMP_NUM_THREADS": "64"}, "warning"),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, {}, "warning"),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, {}, "ok"),
    ],
)
def test_processors_of_a_container(tmp_path: Path, files, environ, verdict):
    """A limit below the machine's processors is told unless torch was told too, for both versions of cgroups."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")

    finding = check_processors(tmp_path, environ)

    assert finding.verdict == verdict
    if verdict == "warning":
        assert "may use 0.5 of" in finding.sentence
        assert "OMP_NUM_THREADS=1" in finding.cure


@pytest.mark.parametrize(
    ("environ", "libc", "verdict", "said"),
    [
        ({}, "glibc", "ok", "tune themselves"),
        (VARIABLES, "glibc", "ok", "MALLOC_*"),
        ({}, "", "warning", "not glibc"),
        ({"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}, "glibc", "ok", "libjemalloc"),
    ],
)
def test_malloc(environ, libc, verdict, said):
    """Another C library than glibc is warned of; variables and replacements are named."""
    finding = check_malloc(environ, libc)

    assert finding.verdict == verdict
    assert said in finding.sentence


def test_compiler(tmp_path: Path):
    """Without a compiler all but --compile works, and the finding says so."""
    without = check_compiler(str(tmp_path))
    (tmp_path / "clang++").touch(mode=0o755)
    with_one = check_compiler(str(tmp_path))

    assert (without.verdict, with_one.verdict) == ("warning", "ok")
    assert "--compile" in without.sentence
    assert "clang++" in with_one.sentence


def test_cache_that_outgrows_its_disk(tmp_path: Path, monkeypatch):
    """Where shards are remote, a cache that may grow beyond its disk is warned of, with a size that fits."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(10**11, 0, 50 * 10**9))

    needed = check_cache(tmp_path / "new" / "cache", 200.0, is_needed=True)
    unneeded = check_cache(tmp_path / "new" / "cache", 200.0, is_needed=False)
    fitting = check_cache(tmp_path / "new" / "cache", 40.0, is_needed=True)

    assert [finding.verdict for finding in (needed, unneeded, fitting)] == ["warning", "ok", "ok"]
    assert "--data.cache-gb 45" in needed.cure


def test_cache_that_cannot_be_written(tmp_path: Path):
    """A cache below a file is a failure where it is needed."""
    (tmp_path / "file").write_text("")

    finding = check_cache(tmp_path / "file" / "cache", 1.0, is_needed=True)

    assert finding.verdict == "failure"
    assert "--data.cache" in finding.cure


def test_a_check_that_breaks_off_is_a_failure():
    """What a check did not expect is one failure, and the next check is made."""
    findings = []

    with surviving("torch", findings):
        raise AttributeError("module has no\nattribute")

    (finding,) = findings
    assert finding.verdict == "failure"
    assert "AttributeError: module has no attribute" in finding.sentence


@pytest.mark.parametrize(
    ("error", "sentence", "cure"),
    [
        (ValueError("a is b; do c"), "a is b", "do c"),
        (ValueError("a is b; so c; do d"), "a is b; so c", "do d"),
        (ValueError("a is b"), "a is b", "check path and permissions"),
    ],
)
def test_the_cure_of_an_error(error, sentence, cure):
    """Our errors end with their cure."""
    finding = failure_of("shards", error)

    assert (finding.sentence, finding.cure) == (sentence, cure)
