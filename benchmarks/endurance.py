"""What a server survives, beside what was promised: `make bench-endurance`.

Each part starts real `samix serve` processes and real clients. The whole takes about an hour on two cores, most of it
the pressure of 200 clients and the soak.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.endurance_fairness import FairnessConfig, run_fairness
from benchmarks.endurance_kills import KillsConfig, run_kills
from benchmarks.endurance_pressure import PressureConfig, run_pressure
from benchmarks.endurance_report import PartReport, table
from benchmarks.endurance_soak import SoakConfig, run_soak
from benchmarks.figures import check_output, describe, headline, prepare_output, publish
from benchmarks.machine import Cores, choose_cores, on_core
from services.cli import ProgramFailed, program
from services.config import parse_config, resolved
from services.malloc import tune_malloc
from trainer.children import unwind_on_signals

Part = Literal["fairness", "pressure", "soak", "kills"]

_PACKAGES = ("grpcio", "protobuf")
_HOW_TO_READ = """\
fairness   a client with many streams and one with a single stream ask for all they can get
pressure   all clients post the largest batch at once; peak is VmHWM of the server's process
soak       memory, threads and descriptors of an idle server, before and after
kills      two replicas, one or the other killed with SIGKILL; batches counted by a key that their pixels hold"""


@dataclass(frozen=True, kw_only=True)
class BenchEnduranceConfig:
    """Put servers under what they must survive, and compare with what was promised."""

    parts: tuple[Part, ...] = ("fairness", "pressure", "soak", "kills")
    """What to run."""
    json: Path = Path("runs/bench/endurance.json")
    """Where to write the figures; the servers' logs go beside them."""
    fairness: FairnessConfig = field(default_factory=FairnessConfig)
    """A greedy client and a modest one."""
    pressure: PressureConfig = field(default_factory=PressureConfig)
    """Clients that post the largest batches, all at once."""
    soak: SoakConfig = field(default_factory=SoakConfig)
    """Cancelled streams, then a mixed load."""
    kills: KillsConfig = field(default_factory=KillsConfig)
    """Two replicas that are killed by turns."""

    def __post_init__(self) -> None:
        check_output(1, self.json)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m benchmarks.endurance`."""
    config = parse_config(BenchEnduranceConfig, "bench endurance", argv)
    unwind_on_signals()
    tune_malloc()
    torch.set_num_threads(1)
    prepare_output(config.json)
    cores = choose_cores()
    about = describe(pinned=asdict(cores), settings=resolved(config), packages=_PACKAGES)
    print(headline(about, f"clients on core {cores.client}, servers on core {cores.server}", _PACKAGES), flush=True)
    with on_core(cores.client):
        reports = [_run(part, config, cores) for part in dict.fromkeys(config.parts)]
    report: dict[str, Any] = {**about, "parts": [part.to_json() for part in reports]}
    publish(config.json, report, table(reports), _HOW_TO_READ)
    if not all(part.is_met for part in reports):
        raise ProgramFailed("not all that was promised was kept; see the table")


def _run(part: Part, config: BenchEnduranceConfig, cores: Cores) -> PartReport:
    log = config.json.with_name(f"{config.json.stem}-{part}.log")
    print(f"{part} (log of the server: {log})", flush=True)
    match part:
        case "fairness":
            report = run_fairness(config.fairness, cores, log)
        case "pressure":
            report = run_pressure(config.pressure, cores, log)
        case "soak":
            report = run_soak(config.soak, cores, log)
        case "kills":
            report = run_kills(config.kills, cores, log)
    for check in report.checks:
        print(f"  {check}", flush=True)
    return report


if __name__ == "__main__":
    sys.exit(main())
