"""Verifies a set of shards to the last picture: what `samix shards --check` does."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from io import FileIO
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import cast

from samix.errors import ShardError
from services.shards.decode import open_picture
from services.shards.index_file import INDEX_NAME, Index, IndexEntry, read_index
from services.shards.patterns import expand
from services.shards.reader import Sample, parse_label
from services.shards.remote import Patience, fetch
from services.shards.shard import Shard, folder_of, is_remote
from services.shards.tar import inspect_file, shown

MAX_CLASSES_SHOWN = 20
"""Up to as many are listed one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong."""

    shard: str
    """Address of the shard, or of the index."""
    key: str
    """Of the sample; empty if the whole shard is meant."""
    sentence: str
    """With the cure."""


@dataclass(kw_only=True, slots=True)
class Report:
    """What a check found; of one shard, or of all together."""

    shards: int = 0
    samples: int = 0
    """Samples with picture and label, readable or not."""
    num_bytes: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    """Samples of each label."""
    problems: list[Problem] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Take up what was found in other shards."""
        self.shards += other.shards
        self.samples += other.samples
        self.num_bytes += other.num_bytes
        self.labels += other.labels
        self.problems += other.problems


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """One shard to be checked."""

    shard: Shard
    entry: IndexEntry | None
    """What its index promises."""
    num_classes: int | None
    """Class names in the index."""
    patience: Patience
    """How long fetching it may take."""


def check_shards(
    patterns: Sequence[str],
    *,
    patience: Patience | None = None,
    num_processes: int | None = None,
    on_shard: Callable[[], object] = lambda: None,
) -> tuple[Report, tuple[str, ...]]:
    """Check structure, pictures, labels and index of all shards that some patterns name.

    Args:
        patterns: as for `open_shards`.
        patience: how long fetching a remote shard may take; None takes the default.
        num_processes: that decode; None takes one per core.
        on_shard: called after each shard, for progress.

    Returns:
        What was found, problems sorted by shard, and the class names of the index.

    Raises:
        ShardError: if a pattern names nothing, or an index cannot be read.
    """
    patience = patience or Patience()
    addresses = expand(patterns)
    folders = sorted({folder for folder in map(folder_of, addresses) if folder is not None})
    indices = {folder: read_index(f"{folder}/{INDEX_NAME}", patience) for folder in folders}
    report, tasks = Report(), list[ShardTask]()
    for address in addresses:
        tasks.append(_task(address, indices.get(folder_of(address) or ""), patience, report))
    for folder, index in indices.items():
        report.problems += _missing(folder, index) if index else []
    for part in _in_processes(tasks, num_processes or os.cpu_count() or 1, on_shard):
        report.add(part)
    report.problems.sort(key=lambda problem: (problem.shard, problem.key))
    return report, next((index.classes for index in indices.values() if index), ())


def check_shard(task: ShardTask) -> Report:
    """Check one shard."""
    report = Report(shards=1)
    try:
        with _opened(task) as file:
            report.num_bytes = os.fstat(file.fileno()).st_size
            _check_file(task, file, report)
            _check_index(task, file, report)
    except (ShardError, OSError) as err:
        report.problems.append(Problem(shard=task.shard.address, key="", sentence=str(err)))
    return report


def describe(report: Report, classes: Sequence[str]) -> str:
    """Make a short table of a report, with its problems line by line."""
    count = len(report.problems)
    lines = [
        f"{report.samples} samples in {report.shards} shards, {report.num_bytes / 1e6:.1f} MB, "
        f"{len(report.labels)} classes, {count or 'no'} problem{'' if count == 1 else 's'}",
        *_class_lines(report, classes),
    ]
    for problem in report.problems:
        place = f"{problem.shard}{f', sample {problem.key}' if problem.key else ''}"
        lines.append(f"  {place}: {problem.sentence}")
    return "\n".join(lines)


def _task(address: str, index: Index | None, patience: Patience, report: Report) -> ShardTask:
    entry = None
    try:
        entry = index.entry(address) if index else None
        if index and entry is None:
            sentence = f"{index.source} does not list it; write the index again"
            report.problems.append(Problem(shard=address, key="", sentence=sentence))
    except ShardError as err:
        report.problems.append(Problem(shard=address, key="", sentence=str(err)))
    num_classes = len(index.classes) if index and index.classes else None
    return ShardTask(shard=Shard(address=address), entry=entry, num_classes=num_classes, patience=patience)


def _missing(folder: str, index: Index) -> list[Problem]:
    if is_remote(folder):  # what a server holds beside the shards asked for is not known
        return []
    gone = [name for name in index.entries if not (Path(folder) / name).exists()]
    sentence = f"{index.source} lists it, but it is not there; fetch it, or write the set again"
    return [Problem(shard=f"{folder}/{name}", key="", sentence=sentence) for name in gone]


def _in_processes(tasks: Sequence[ShardTask], num_processes: int, on_shard: Callable[[], object]) -> Iterable[Report]:
    with ProcessPoolExecutor(min(num_processes, len(tasks)), mp_context=get_context("spawn")) as pool:
        futures: list[Future[Report]] = [pool.submit(check_shard, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
                on_shard()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _opened(task: ShardTask) -> FileIO:
    if task.shard.path is not None:
        return FileIO(task.shard.path)
    # Not from the cache: what it holds is what the address gave once.
    file = cast(FileIO, TemporaryFile(buffering=0))  # noqa: SIM115 - the caller closes it
    try:
        fetch(task.shard.address, file, patience=task.patience)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _check_file(task: ShardTask, file: FileIO, report: Report) -> None:
    address = task.shard.address
    table, faults = inspect_file(file, address)
    report.problems += [Problem(shard=address, key=fault.key, sentence=fault.sentence) for fault in faults]
    report.samples = len(table)
    for key, ranges in zip(map(shown, table.keys), table.ranges.tolist(), strict=True):
        image, label = os.pread(file.fileno(), ranges[1], ranges[0]), os.pread(file.fileno(), ranges[3], ranges[2])
        try:
            number = parse_label(label, key, address)
            report.labels[number] += 1
            open_picture(Sample(address, key, image, number)).load()
            _check_range(number, task.num_classes)
        except ShardError as err:
            report.problems.append(Problem(shard=address, key=key, sentence=str(err)))


def _check_range(label: int, num_classes: int | None) -> None:
    if num_classes is not None and label >= num_classes:
        raise ShardError(f"label {label} has no name, the index has {num_classes}; write the index again")


def _check_index(task: ShardTask, file: FileIO, report: Report) -> None:
    if task.entry is None:
        return
    file.seek(0)
    found = {
        "samples": (report.samples, task.entry.samples),
        "bytes": (report.num_bytes, task.entry.num_bytes),
        "sha256": (hashlib.file_digest(file, "sha256").hexdigest(), task.entry.sha256 or None),
    }
    for name, (actual, promised) in found.items():
        if promised is not None and actual != promised:
            sentence = f"{name} {actual}, its index says {promised}; fetch the shard again, or write the index again"
            report.problems.append(Problem(shard=task.shard.address, key="", sentence=sentence))


def _class_lines(report: Report, classes: Sequence[str]) -> list[str]:
    counts = {label: report.labels[label] for label in {*report.labels, *range(len(classes))}}
    if not counts:
        return []
    if len(counts) <= MAX_CLASSES_SHOWN:
        return [f"  {label:>6} {_name(label, classes):<20} {counts[label]:>9}" for label in sorted(counts)]
    smallest, largest = min(counts, key=lambda label: counts[label]), max(counts, key=lambda label: counts[label])
    return [
        f"  samples per class: smallest {counts[smallest]} ({_name(smallest, classes) or smallest}), "
        f"median {median(counts.values()):g}, largest {counts[largest]} ({_name(largest, classes) or largest})"
    ]


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else ""
