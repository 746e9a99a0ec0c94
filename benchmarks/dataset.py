"""What it costs to have batches streamed instead of made at home: `samix bench dataset`.

Unmixed batches from a server's memory take turns with the same bytes over a bare socket and with tf.data service, one
core for the consumers and one for the server. Mixed ones take turns with a loop that loads and mixes in one process, on
as many cores as server and consumer have together.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.dataset_loop import LoopConfig, measure_loop
from benchmarks.dataset_report import MixingRound, StreamRound, is_met, summarise_mixing, summarise_streams, table
from benchmarks.dataset_shards import write_shard
from benchmarks.dataset_systems import TF_DATA, our_system
from benchmarks.figures import check_output, describe, headline, prepare_output, publish
from benchmarks.machine import Cores, choose_cores, on_core
from benchmarks.peer_servers.mix_batch import IMAGES_SHAPE
from benchmarks.peer_systems import System, Variant
from benchmarks.peer_turns import Load, take_turn
from benchmarks.peer_venvs import NotInstalled, open_venv, read_versions
from benchmarks.raw_sockets import measure_raw_stream, raw_server
from samix.errors import ConfigError
from samix.mixing.artefact import save_artefact
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import resnet18_spec
from services.cli import ProgramFailed, program
from services.config import parse_config
from services.malloc import tune_malloc
from trainer.children import ChildFailed, unwind_on_signals

_PACKAGES = ("grpcio", "protobuf", "numpy")
_OURS = "samix"
_BATCH_SIZE, _, _SIDE, _ = IMAGES_SHAPE
_BATCH_BYTES = _BATCH_SIZE * 3 * _SIDE * _SIDE
_SHIPPED = Path(__file__).parents[1] / "mixers/samix-cifar100-20c-small.safetensors"
_READY_S = 180.0
_SPARE_MIB = 256
_HOW_TO_READ = f"""\
A batch is {_BATCH_SIZE} x 3 x {_SIDE} x {_SIDE} uint8 (9.63 MB) with labels and keys, over TCP loopback.
consumers    that take batches side by side; the best of those tried counts
CPU          processor time for a batch: of all the server's processes, and of the consumers'
one process  a loop over the same shards that decodes, crops and mixes, on all cores; the best of its settings
served       the same from a server on those cores, up to the batch in the consumer's hands; the best of its settings"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixingCase:
    """One mixer, and pictures for it."""

    name: str
    """For the table."""
    mixer: Path
    """Its file."""
    image_size: int
    """Side of the images, pixels."""
    batch_size: int
    """Images of a batch."""
    num_pictures: int
    """Of an epoch."""


@dataclass(frozen=True, kw_only=True)
class BenchDatasetConfig:
    """Compare streamed batches with bare sockets, with tf.data service, and with a loop that makes its own."""

    json: Path = Path("runs/bench/dataset.json")
    """Where to write the figures; logs go beside them."""
    seconds: float = 2.0
    """Length of one measurement, in seconds."""
    rounds: int = 3
    """How often everything is measured; medians are shown."""
    parts: tuple[Literal["streams", "mixing"], ...] = ("streams", "mixing")
    """streams: unmixed, from memory; mixing: with mixers."""
    consumers: tuple[int, ...] = (1, 2)
    """Consumers side by side in `streams`; each system's best counts."""
    pictures: int = 4096
    """Pictures in the server's memory in `streams`: 0.15 MB each."""
    peers: bool = True
    """Measure tf.data service too; installed on the first run."""
    full: bool = False
    """Mix with a ResNet-18 at 224 px as well."""
    venvs: Path = Path("runs/bench/venvs")
    """Where the peer's Python environment is kept."""

    def __post_init__(self) -> None:
        check_output(self.rounds, self.json)
        if not 0 < self.seconds <= 60:
            raise ConfigError(f"seconds must be above 0 and at most 60, got {self.seconds}")
        if not self.consumers or not all(1 <= number <= 16 for number in self.consumers):
            raise ConfigError(f"consumers must be numbers in 1..16, got {self.consumers}")
        if not self.parts:
            raise ConfigError("parts must name streams, mixing or both, got none")
        if not 4 * _BATCH_SIZE <= self.pictures <= 65536:
            raise ConfigError(f"pictures must lie in {4 * _BATCH_SIZE}..65536, got {self.pictures}")


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `samix bench dataset`.

    Raises:
        ProgramFailed: if a limit is missed.
    """
    config = parse_config(BenchDatasetConfig, "bench dataset", argv)
    cores = choose_cores()
    if cores.client is None or cores.client == cores.server:
        raise ConfigError("server and consumer need a core each; run this on Linux with two")
    unwind_on_signals()
    tune_malloc()
    prepare_output(config.json)
    report = _run(config, cores)
    publish(config.json, report, table(report), _HOW_TO_READ)
    if not is_met(report):
        raise ProgramFailed("a limit was missed; see the table")


def _run(config: BenchDatasetConfig, cores: Cores) -> dict[str, Any]:
    about = describe(pinned=asdict(cores), settings=asdict(config), packages=_PACKAGES)
    print(headline(about, f"consumers on core {cores.client}, server on core {cores.server}", _PACKAGES), flush=True)
    report = dict(about)
    with tempfile.TemporaryDirectory(prefix="samix-bench-") as name:
        if "streams" in config.parts:
            assert TF_DATA.requirements
            report["peer_versions"] = read_versions(TF_DATA.requirements)
            report["streams"] = _measure_streams(config, cores, Path(name))
        if "mixing" in config.parts:
            report["mixing"] = [_measure_mixing(config, case, Path(name)) for case in _cases(config, Path(name))]
    return report


def _measure_streams(config: BenchDatasetConfig, cores: Cores, folder: Path) -> dict[str, Any]:
    shard = folder / "crops.tar"
    print(f"making {config.pictures} pictures of {_SIDE} px", flush=True)
    write_shard(shard, config.pictures, _SIDE)
    memory_mib = (config.pictures * 3 * _SIDE * _SIDE >> 20) + _SPARE_MIB
    options = {"batch_size": _BATCH_SIZE, "image_size": _SIDE, "augmentation": "center"}
    ours = our_system(shard, memory_mib, options, "--memory-mib", str(3 * memory_mib + 4096))
    entries, missing = _entries(config, ours)
    rounds: list[StreamRound] = []
    with raw_server(folder, cores.server) as raw:
        for number in range(1, config.rounds + 1):
            print(f"round {number} of {config.rounds}: unmixed", flush=True)
            rounds.append(_stream_round(config, cores, entries, missing, raw["tcp"]))
    kept = [
        StreamRound(raw_s=each.raw_s, figures={name: each.figures[name] for name in entries if name not in missing})
        for each in rounds
    ]
    return summarise_streams(_OURS, _BATCH_BYTES, kept, missing)


def _entries(
    config: BenchDatasetConfig, ours: System
) -> tuple[dict[str, tuple[System, Variant, Path]], dict[str, str]]:
    """List who streams; tf.data service is left out, with the reason, where it cannot be installed."""
    entries = {_OURS: (ours, ours.variants[0], Path(sys.executable))}
    missing: dict[str, str] = {}
    names = {f"{TF_DATA.name}, {variant.name}": variant for variant in TF_DATA.variants}
    if not config.peers:
        return entries, dict.fromkeys(names, "not asked for")
    assert TF_DATA.requirements
    try:
        python = open_venv(TF_DATA.requirements, config.venvs.absolute())
    except NotInstalled as err:
        return entries, dict.fromkeys(names, f"not installed: {err}")
    return entries | {name: (TF_DATA, variant, python) for name, variant in names.items()}, missing


def _stream_round(
    config: BenchDatasetConfig,
    cores: Cores,
    entries: Mapping[str, tuple[System, Variant, Path]],
    missing: dict[str, str],
    raw: str,
) -> StreamRound:
    load = Load(concurrency=config.consumers, seconds=config.seconds, cores=cores)
    with on_core(cores.client):
        raw_s = measure_raw_stream(raw, _BATCH_BYTES, config.seconds)
    print(f"    {'raw TCP, one way':<34}{1e3 * raw_s:8.2f} ms/batch", flush=True)
    figures: dict[str, list[dict[str, Any]]] = {}
    for name, (system, variant, python) in entries.items():
        if name in missing:
            continue
        try:
            figures[name] = take_turn(system, variant, python, load, _log(config.json, name), _READY_S)
        except ChildFailed as err:
            if name == _OURS:
                raise
            missing[name] = str(err).splitlines()[0]
            print(f"    {name}: {missing[name]}", flush=True)
        else:
            best_s = min(each["elapsed_s"] / each["batches"] for each in figures[name])
            print(f"    {name:<34}{1e3 * best_s:8.2f} ms/batch", flush=True)
    return StreamRound(raw_s=raw_s, figures=figures)


def _cases(config: BenchDatasetConfig, folder: Path) -> list[MixingCase]:
    cases = [
        MixingCase(name="resnet for 32 px", mixer=_SHIPPED, image_size=32, batch_size=64, num_pictures=4096),
    ]
    if config.full:
        mixer = random_mixer(resnet18_spec(), seed=0, name="random-r18")
        path = folder / f"{mixer.name}.safetensors"
        save_artefact(path, mixer, {"data": "none"})
        cases.append(MixingCase(name="resnet18 at 224 px", mixer=path, image_size=224, batch_size=16, num_pictures=512))
    return cases


def _measure_mixing(config: BenchDatasetConfig, case: MixingCase, folder: Path) -> dict[str, Any]:
    shard = folder / f"{case.mixer.stem}.tar"
    write_shard(shard, case.num_pictures, case.image_size)
    threads = sorted({1, len(os.sched_getaffinity(0))})
    rounds = []
    for number in range(1, config.rounds + 1):
        print(f"round {number} of {config.rounds}: {case.name}", flush=True)
        loop = {
            f"{_threads(count)}, {workers} loaders": _loop(config, case, shard, count, workers)
            for count in threads
            for workers in (0, 1)
        }
        served = {_threads(count): _serve(config, case, shard, count) for count in threads}
        served |= {_lanes(count): _serve(config, case, shard, 1, num_lanes=count) for count in threads if count > 1}
        rounds.append(MixingRound(loop=loop, served=served))
        print(f"    one process {max(loop.values()):,.0f}, served {max(served.values()):,.0f} images/s", flush=True)
    return summarise_mixing(case.name, rounds)


def _loop(config: BenchDatasetConfig, case: MixingCase, shard: Path, num_threads: int, num_workers: int) -> float:
    loop = LoopConfig(
        shards=str(shard),
        mixer=case.mixer,
        batch_size=case.batch_size,
        image_size=case.image_size,
        seconds=config.seconds,
        num_workers=num_workers,
        num_threads=num_threads,
    )
    return measure_loop(loop, _log(config.json, f"{case.name} loop"))


def _serve(config: BenchDatasetConfig, case: MixingCase, shard: Path, num_threads: int, *, num_lanes: int = 1) -> float:
    """Let a server and a consumer share all cores; answers images per second."""
    options = {"batch_size": case.batch_size, "image_size": case.image_size, "mixer": case.mixer.stem}
    flags = ["--mixers", str(case.mixer), "--device", "cpu"]
    flags += ["--num-threads", str(num_threads), "--lanes", str(num_lanes)]
    ours = our_system(shard, 0, options, *flags)
    load = Load(concurrency=(1,), seconds=config.seconds, cores=Cores(client=None, server=None))
    log = _log(config.json, f"{case.name} served")
    (figures,) = take_turn(ours, ours.variants[0], Path(sys.executable), load, log, _READY_S)
    return case.batch_size * figures["batches"] / figures["elapsed_s"]


def _lanes(count: int) -> str:
    return f"{count} lanes"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _log(json: Path, name: str) -> Path:
    return json.with_name("-".join([json.stem, *name.replace(",", "").lower().split()]) + ".log")


if __name__ == "__main__":
    sys.exit(main())
