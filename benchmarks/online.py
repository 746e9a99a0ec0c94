"""What co-training on a server gains and costs: `samix bench online` trains one small ResNet both ways, by seeds.

In one process the classifier and the mixer share a core; remote, the trainer has one core and the server another. Runs
that are done are kept, and one that was broken off goes on after its last epoch: start the same command again.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.figures import describe, headline, publish
from benchmarks.machine import bind_child, choose_cores
from samix.errors import ConfigError
from services.cli import program
from services.config import parse_config
from trainer.children import start_child, unwind_on_signals

WAYS = ("in one process", "on a server")
MOST_STEP_SHARE = 0.8
"""Of the in-process step's time, that the remote one may take."""

_RUN_LIMIT_S = 4 * 3600.0
_READY_S = 120.0
_HOW_TO_READ = (
    "Accuracies are those at the end of each run; the spread is the difference between the best and the worst seed in\n"
    "one process. A step's time is the trainer's, median over the lines of its log, waits for the server included."
)


@dataclass(frozen=True, kw_only=True)
class OnlineBenchConfig:
    """Train with the mixer in the trainer's process and on a server, and compare."""

    train: str
    """Shards to train on: a path, a glob or a brace pattern (quote it)."""
    val: str
    """Shards to evaluate on."""
    out: Path = Path("runs/bench-online")
    """Folder of all runs."""
    json: Path = Path("runs/bench-online.json")
    """Where the figures are written."""
    recipe: str = "cifar_tiny_cpu"
    """Recipe of `samix train` that all runs follow."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A pair of runs for each."""
    weights_every: int = 10
    """Steps between two sets of weights."""
    max_staleness: int = 1
    """Steps by which the mixer may lag behind."""
    memory_mib: int = 1024
    """Of the server, for its session."""
    flags: tuple[str, ...] = field(default=())
    """Further flags of `samix train` for all runs, for example --flags=--epochs=3; the last --flags counts."""

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must be different numbers of at least 0, got {self.seeds}")


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `samix bench online --train GLOB --val GLOB`."""
    config = parse_config(OnlineBenchConfig, "bench online", argv)
    unwind_on_signals()
    cores = choose_cores()
    pinned = {"trainer": cores.client, "server": cores.server}
    settings = {name: getattr(config, name) for name in ("recipe", "seeds", "weights_every", "max_staleness", "flags")}
    report = describe(pinned=pinned, settings=settings)
    print(headline(report, f"trainer on core {cores.client}, server on core {cores.server}"), flush=True)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in config.seeds:
        for way in WAYS:
            runs[way].append(_run(config, way, seed))
            print(f"seed {seed}  {way:<16}{_line(runs[way][-1])}", flush=True)
    report |= {"runs": runs, **compare(runs)}
    config.json.parent.mkdir(parents=True, exist_ok=True)
    publish(config.json, report, table(report), _HOW_TO_READ)


def compare(runs: Mapping[Any, list[dict[str, Any]]]) -> dict[str, Any]:
    """Work out what the report claims from the runs of both ways, seed by seed."""
    here, there = (runs[way] for way in WAYS)
    top1_here, top1_there = ([run["top1"] for run in way] for way in (here, there))
    spread = max(top1_here) - min(top1_here)
    share = mean(run["step_ms"] for run in there) / mean(run["step_ms"] for run in here)
    return {
        "top1": dict(zip(WAYS, (mean(top1_here), mean(top1_there)), strict=True)),
        "spread": spread,
        "is_as_good": mean(top1_there) >= mean(top1_here) - spread,
        "step_share": share,
        "is_quicker": share <= MOST_STEP_SHARE,
    }


def table(report: dict[str, Any]) -> str:
    """Write the figures as a table."""
    lines = ["                 top-1            step      waits  fallbacks"]
    for way in WAYS:
        runs = report["runs"][way]
        step_ms, wait = mean(run["step_ms"] for run in runs), mean(run["wait_share"] for run in runs)
        lost = sum(run["fallbacks"] for run in runs)
        lines.append(f"{way:<17}{100 * report['top1'][way]:5.2f} % {step_ms:14.0f} ms {100 * wait:6.1f} %  {lost:9}")
    lines.append("")
    lines.append(
        f"spread of seeds in one process: {100 * report['spread']:.2f} points; as good: {report['is_as_good']}"
    )
    lines.append(
        f"a step on a server takes {report['step_share']:.2f} of one in one process; at most {MOST_STEP_SHARE}: "
        f"{report['is_quicker']}"
    )
    return "\n".join(lines)


def _run(config: OnlineBenchConfig, way: str, seed: int) -> dict[str, Any]:
    folder = config.out / f"seed{seed}" / way.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "summary.json").exists():
        _train(config, way, seed, folder)
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "step"]
    images = summary["images"] / summary["steps"]
    return {
        "seed": seed,
        "top1": summary["top1"],
        "step_ms": 1000 * images / median(row["images_per_s"] for row in steps),
        "wait_share": median(row["wait_share"] for row in steps),
        "fallbacks": summary["fallbacks"],
        "seconds": summary["seconds"],
        **{name: summary[name] for name in ("lam_error", "spread") if name in summary},
    }


def _train(config: OnlineBenchConfig, way: str, seed: int, folder: Path) -> None:
    cores = choose_cores()
    flags = [config.recipe, "--data.train", config.train, "--data.val", config.val, "--seed", str(seed)]
    flags += ["--data.num-workers", "0", "--device", "cpu", "--metrics.port", "0", "--metrics.linger-s", "0"]
    with ExitStack() as running:
        if way == WAYS[0]:
            flags += ["--mixing.policy", "online"]
        else:
            endpoint = _serve(config, folder, running, cores.server)
            flags += ["--mixing.policy", "remote-online", "--mixing.endpoint", endpoint, "--mixing.deadline-s", "60"]
            flags += ["--mixing.session.weights-every", str(config.weights_every)]
            flags += ["--mixing.session.max-staleness", str(config.max_staleness)]
        args = ["train", *flags, *config.flags, "--out", str(folder), "--resume", "auto"]
        trainer = running.enter_context(start_child("samix", args, folder / "run.log"))
        bind_child(trainer.process_id, cores.client)
        trainer.wait(_RUN_LIMIT_S, lambda _line: None)


def _serve(config: OnlineBenchConfig, folder: Path, running: ExitStack, core: int | None) -> str:
    ports = [part for port in ("grpc", "http", "metrics") for part in (f"--{port}-port", "0")]
    online = ["--online.memory-mib", str(config.memory_mib), "--online.folder", str(folder / "sessions")]
    args = ["serve", *online, "--device", "cpu", "--num-threads", "1", *ports]
    server = running.enter_context(start_child("samix", args, folder / "server.log"))
    bind_child(server.process_id, core)
    line = server.wait_for_line("ready ", _READY_S)
    return dict(part.split("=", 1) for part in line.split()[1:] if "=" in part)["grpc"]


def _line(run: dict[str, Any]) -> str:
    return f"top-1 {100 * run['top1']:.2f} %, a step {run['step_ms']:.0f} ms, waits {100 * run['wait_share']:.1f} %"


if __name__ == "__main__":
    sys.exit(main())
