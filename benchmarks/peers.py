"""Images served per second, ours beside PyTriton, KServe, Ray Serve and LitServe: `samix bench peers`.

Every server answers a prepared array and never looks at a pixel, so that what is compared is the serving, not a model.
All take turns within each round, each alone on the machine; ratios of one round compare, days and machines do not.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import check_output, describe, headline, prepare_output, publish
from benchmarks.machine import Cores, choose_cores
from benchmarks.peer_systems import OURS, SYSTEMS, System, Variant
from benchmarks.peer_turns import Load, take_turn
from benchmarks.peer_venvs import NotInstalled, open_venv, read_versions
from benchmarks.peers_plot import draw_peers
from benchmarks.peers_report import Entry, Measured, summarise, table
from samix.errors import ConfigError
from services.cli import ProgramFailed, program
from services.config import parse_config
from trainer.children import ChildFailed, unwind_on_signals

_PACKAGES = ("grpcio", "protobuf", "numpy")
_HOW_TO_READ = """\
A request is 64 x 3 x 224 x 224 uint8 (9.63 MB), lambda and partner, over TCP loopback; the answer is 25 kB of logits.
callers     threads that wait for their answer before they ask again; the best of those tried
images/s    median over the rounds
MB/s        of pixels
server CPU  processor time of all the server's processes for a batch
malloc      glibc told to keep large buffers, on both sides; ours always does"""


@dataclass(frozen=True, kw_only=True)
class BenchPeersConfig:
    """Compare this server with others, each with a model that costs nothing, server and client on a core each."""

    json: Path = Path("runs/bench/peers.json")
    """Where to write the figures; a picture (.png) and the logs go beside them."""
    seconds: float = 1.5
    """Length of one measurement, in seconds; there is one for each concurrency, setting, system and round."""
    rounds: int = 3
    """How often everything is measured; medians are shown."""
    concurrency: tuple[int, ...] = (1, 2, 4)
    """Callers that ask at once; each system's best counts."""
    systems: tuple[str, ...] = tuple(system.name for system in SYSTEMS)
    """Which systems; ours is always among them."""
    venvs: Path = Path("runs/bench/venvs")
    """Where the other systems' Python environments are kept; those that are missing are installed."""

    def __post_init__(self) -> None:
        check_output(self.rounds, self.json)
        if not 0 < self.seconds <= 60:
            raise ConfigError(f"seconds must be above 0 and at most 60, got {self.seconds}")
        if not self.concurrency or not all(1 <= number <= 64 for number in self.concurrency):
            raise ConfigError(f"concurrency must be numbers in 1..64, got {self.concurrency}")
        known = [system.name for system in SYSTEMS]
        for name in self.systems:
            if name not in known:
                raise ConfigError(f"systems must be among {', '.join(known)}, got {name!r}")


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `samix bench peers`.

    Raises:
        ProgramFailed: if no peer could be measured, or ours is not as far ahead as was promised.
    """
    config = parse_config(BenchPeersConfig, "bench peers", argv)
    cores = choose_cores()
    if cores.client is None or cores.client == cores.server:
        raise ConfigError("server and client need a core each; run this on Linux with two")
    unwind_on_signals()
    prepare_output(config.json)
    picture = config.json.with_suffix(".png")
    picture.unlink(missing_ok=True)
    report = _run(config, cores)
    draw_peers(report, picture)
    publish(config.json, report, table(report), f"{_HOW_TO_READ}\npicture: {picture}")
    if not report["is_within"]:
        raise ProgramFailed("ours is not as far ahead of the best peer as was promised; see the table")


def _run(config: BenchPeersConfig, cores: Cores) -> dict[str, Any]:
    systems = [system for system in SYSTEMS if system.name in (OURS, *config.systems)]
    about = describe(pinned=asdict(cores), settings=asdict(config), packages=_PACKAGES)
    print(headline(about, f"client on core {cores.client}, server on core {cores.server}", _PACKAGES), flush=True)
    load = Load(concurrency=config.concurrency, seconds=config.seconds, cores=cores)
    entries, missing = _install(systems, config.venvs)
    measured = _measure(config, load, entries, missing)
    versions = {system.name: read_versions(system.requirements) for system in systems if system.requirements}
    return {**about, "peer_versions": versions, **summarise(measured, missing)}


def _install(systems: Sequence[System], folder: Path) -> tuple[dict[Entry, Path], dict[Entry, str]]:
    """Find each system's Python; a system that cannot be installed is left out, with the reason."""
    entries: dict[Entry, Path] = {}
    missing: dict[Entry, str] = {}
    for system in systems:
        named = [Entry(system.name, variant.name) for variant in system.variants]
        try:
            python = open_venv(system.requirements, folder.absolute()) if system.requirements else Path(sys.executable)
        except NotInstalled as err:
            missing |= dict.fromkeys(named, f"not installed: {err}")
        else:
            entries |= dict.fromkeys(named, python)
    return entries, missing


def _measure(
    config: BenchPeersConfig, load: Load, entries: Mapping[Entry, Path], missing: dict[Entry, str]
) -> Measured:
    """Let everybody take turns; who fails is left out from then on, with the reason, unless it is ours."""
    found = {Entry(system.name, each.name): (system, each) for system in SYSTEMS for each in system.variants}
    taken: Measured = {entry: [] for entry in entries}
    for number in range(1, config.rounds + 1):
        print(f"round {number} of {config.rounds}", flush=True)
        for entry in [entry for entry in entries if entry not in missing]:
            system, variant = found[entry]
            try:
                figures = take_turn(system, variant, entries[entry], load, _log(config.json, system, variant))
            except ChildFailed as err:
                if system.name == OURS:
                    raise
                missing[entry] = f"failed in round {number}: {_in_one_line(err)}"
                print(f"    {entry}: {missing[entry]}", flush=True)
            else:
                taken[entry].append(figures)
                best = max(64 * each["batches"] / each["elapsed_s"] for each in figures)
                print(f"    {entry!s:<42}{best:>8,.0f} images/s", flush=True)
    return {entry: rounds for entry, rounds in taken.items() if entry not in missing}


def _in_one_line(err: ChildFailed) -> str:
    """Keep what happened, the last line of the log, and where the log is."""
    first, *quoted = str(err).splitlines()
    return " ".join([first, *(line.strip() for line in quoted[-2:])])


def _log(json: Path, system: System, variant: Variant) -> Path:
    words = f"{json.stem} {system.name} {variant.name}".replace(",", "").lower().split()
    return json.with_name("-".join(words) + ".log")


if __name__ == "__main__":
    sys.exit(main())
