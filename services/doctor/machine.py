"""What the kernel or a container gives to processes: shared memory, open files, processors, malloc, a compiler."""

import os
import platform
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

from services.doctor.findings import Finding, failure, ok, unchecked, warning
from services.malloc import VARIABLES

MIB = 1 << 20

_CGROUP = Path("/sys/fs/cgroup")
_SHARED_MEMORY = Path("/dev/shm")
_COMPILERS = ("g++", "clang++", "c++")

_LITTLE_SHARED_MIB = 64
_FAIR_SHARED_MIB = 1024
_FEW_FILES = 512
_FAIR_FILES = 1024


def check_shared_memory(folder: Path = _SHARED_MEMORY) -> Finding:
    """Look at what decoding processes pass batches through; a full one kills them with SIGBUS."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        cure = f"mount a tmpfs on {folder}, or decode in the training process: --data.num-workers 0"
        return failure("shared memory", f"{folder} cannot be used ({error.strerror})", cure)
    sentence = f"{folder} has {usage.free // MIB} MiB free of {usage.total // MIB}"
    cure = (
        "docker run --shm-size 8g, shm_size in compose, a memory-backed emptyDir in Kubernetes; or --data.num-workers 0"
    )
    if usage.free <= _LITTLE_SHARED_MIB * MIB:
        return failure("shared memory", f"{sentence}; four batches of 128 photos of 224 px take 77", cure)
    if usage.free < _FAIR_SHARED_MIB * MIB:
        return warning("shared memory", f"{sentence}; each worker of each rank holds batches there", cure)
    return ok("shared memory", sentence)


def check_open_files(limits: tuple[int, int] | None = None) -> Finding:
    """Look at the number of files and connections a process may have.

    Args:
        limits: soft and hard one; None asks the system.
    """
    soft, hard = limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ok("open files", "no limit")
    sentence = f"a process may open {soft} files and connections"
    most = "none" if hard == resource.RLIM_INFINITY else str(hard)
    cure = f"ulimit -n 65536 (hard limit here: {most}), ulimits.nofile in compose, LimitNOFILE= in a systemd unit"
    if soft < _FEW_FILES:
        return failure("open files", f"{sentence}; shards, workers and clients need more than {_FEW_FILES}", cure)
    if soft < _FAIR_FILES:
        return warning("open files", f"{sentence}; a server accepts 1024 connections", cure)
    return ok("open files", sentence)


def check_processors(cgroup: Path = _CGROUP, environ: Mapping[str, str] = os.environ) -> Finding:
    """Compare the processors of the machine with those that this process may use."""
    machine = os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    quota = _cpu_quota(cgroup)
    if quota is None or quota >= bound:
        where = "" if bound == machine else f" of the machine's {machine}, by taskset or cpuset"
        return ok("processors", f"{bound}{where}; no container limit below that")
    sentence = f"the container may use {quota:g} of {bound} processors"
    threads = environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) <= max(quota, 1):
        return ok("processors", f"{sentence}; OMP_NUM_THREADS is {threads}")
    told = f"OMP_NUM_THREADS is {threads}" if threads else f"torch would start {bound} threads in a trainer"
    return warning("processors", f"{sentence}; {told}", f"set OMP_NUM_THREADS={max(int(quota), 1)}, or raise the limit")


def check_malloc(environ: Mapping[str, str] = os.environ, libc: str | None = None) -> Finding:
    """Tell whether large buffers stay in the heap between messages; see services.malloc.

    Args:
        environ: variables of this process.
        libc: name of the C library; None asks the system.
    """
    preloaded = environ.get("LD_PRELOAD", "")
    if "malloc" in preloaded:
        return ok("malloc", f"replaced by LD_PRELOAD={preloaded}; our settings are for glibc's")
    name = platform.libc_ver()[0] if libc is None else libc
    if name != "glibc":
        told = f"the C library is {name or 'not glibc'}, whose malloc has no settings for buffers of megabytes"
        return warning(
            "malloc", told, "use an image with glibc (Debian, Ubuntu), or preload jemalloc; else half the speed"
        )
    if all(environ.get(variable) == value for variable, value in VARIABLES.items()):
        return ok("malloc", "glibc, tuned by MALLOC_* variables for every program")
    return ok(
        "malloc", "glibc, which our programs tune themselves; docs/serving.md has variables for a loop of your own"
    )


def check_compiler(path: str | None = None) -> Finding:
    """Look for what --compile needs.

    Args:
        path: folders to search, as in PATH; None takes those of this process.
    """
    found = next((name for name in _COMPILERS if shutil.which(name, path=path)), None)
    if found is None:
        sentence = f"found no {', '.join(_COMPILERS)}; --compile will be refused, all else works"
        return warning("compiler", sentence, "apt-get install g++, or leave --compile out")
    return ok("compiler", f"{found}, for --compile")


def check_cache(folder: Path, limit_gb: float, *, is_needed: bool) -> Finding:
    """Look at the disk of the cache of remote shards.

    Args:
        folder: of the cache; need not exist.
        limit_gb: most it may hold, GB.
        is_needed: whether there are remote shards.
    """
    place = folder.expanduser()
    present = next(parent for parent in (place, *place.parents) if parent.exists())
    if not present.is_dir() or not os.access(present, os.W_OK | os.X_OK):
        verdict = failure if is_needed else warning
        return verdict("shard cache", f"{place} cannot be written", "choose another folder: --data.cache PATH")
    free_gb, held_gb = shutil.disk_usage(present).free / 1e9, _held_gb(place)
    sentence = f"{place}: {free_gb:.0f} GB free, {held_gb:.1f} held, may grow to {limit_gb:g}"
    if is_needed and free_gb + held_gb < limit_gb:
        cure = f"--data.cache-gb {max(int(free_gb + held_gb - 5), 1)}, or --data.cache on a larger disk"
        return warning("shard cache", f"{sentence}, more than the disk has", cure)
    return ok("shard cache", sentence if is_needed else f"{sentence}; for remote shards only")


def check_platform() -> Finding | None:
    """Say where most of these checks have no meaning; None on Linux."""
    if platform.system() == "Linux":
        return None
    return unchecked("system", f"{platform.system()}: container limits are those of Linux", "run it where you train")


def _cpu_quota(cgroup: Path) -> float | None:
    version_2 = _words(cgroup / "cpu.max")
    if len(version_2) == 2 and version_2[0].isdigit():
        return int(version_2[0]) / int(version_2[1])
    quota, period = _words(cgroup / "cpu/cpu.cfs_quota_us"), _words(cgroup / "cpu/cpu.cfs_period_us")
    if quota and period and quota[0].isdigit():  # version 1; without a limit the quota is -1
        return int(quota[0]) / int(period[0])
    return None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # no container, or another version of cgroups
        return []


def _held_gb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("*.shard")) / 1e9 if folder.is_dir() else 0.0
