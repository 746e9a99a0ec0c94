"""What mixing is worth here: `python -m benchmarks.accuracy` trains one small ResNet in every way, from several seeds.

Every run is a `samix train` of its own. Finished ones are kept, and one that was broken off goes on after its last
epoch: start the same command again.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.accuracy_report import accuracy_table, draw_accuracies, headline
from benchmarks.machine import describe_machine
from samix.errors import ConfigError
from services.cli import program
from services.config import parse_config
from trainer.children import Child, start_child, unwind_on_signals
from trainer.methods.online import ARTEFACT
from trainer.provenance import software
from trainer.report import write_summary

_RUN_LIMIT_S = 4 * 3600.0
_POLL_S = 0.5
_FLAGS = "flags.json"

_CUTMIX = ("--mixing.policy", "cutmix", "--mixing.alpha", "0.2")
_FROZEN = ("--mixing.policy", "local")
_CLEAN = ("--objective.clean-weight", "1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One row of the table."""

    name: str
    """Of the folder of its runs."""
    title: str
    """As the table has it."""
    flags: tuple[str, ...]
    """What sets it apart."""
    mixer_of: str = ""
    """The way whose trained mixer, of the same seed, it uses frozen."""


# Alphas as published for CIFAR. The online run also pretrains the mixer that the frozen one uses.
WAYS = (
    Way(name="online", title="SAMix online", flags=("--mixing.policy", "online")),
    Way(name="none", title="no mixing", flags=("--mixing.policy", "none")),
    Way(name="mixup", title="Mixup", flags=("--mixing.policy", "mixup", "--mixing.alpha", "1")),
    Way(name="cutmix", title="CutMix", flags=_CUTMIX),
    Way(name="frozen", title="SAMix^P", flags=_FROZEN, mixer_of="online"),
    Way(name="online-clean", title="SAMix online, and clean", flags=("--mixing.policy", "online", *_CLEAN)),
    Way(name="frozen-clean", title="SAMix^P, and clean", flags=(*_FROZEN, *_CLEAN), mixer_of="online"),
    Way(name="cutmix-clean", title="CutMix, and clean", flags=(*_CUTMIX, *_CLEAN)),
)


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig:
    """Train one network in every way, with equal epochs, and compare."""

    train: str
    """Shards to train on: a path, a glob or a brace pattern (quote it)."""
    val: str
    """Shards to evaluate on."""
    out: Path = Path("runs/accuracy")
    """Folder of all runs, table.json and accuracy.png."""
    recipe: str = "cifar_tiny_cpu"
    """Recipe of `samix train` that all runs follow."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One row of runs for each."""
    jobs: int = 2
    """Runs at a time, one thread each."""
    flags: tuple[str, ...] = field(default=())
    """Further flags of `samix train` for all runs, for example --flags=--epochs=3."""

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must be different numbers of at least 0, got {self.seeds}")
        if not 1 <= self.jobs <= 256:
            raise ConfigError(f"jobs must lie in 1..256, got {self.jobs}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training run of the table."""

    way: Way
    seed: int
    folder: Path

    @property
    def summary(self) -> Path:
        """What it leaves when it is done."""
        return self.folder / "summary.json"

    @property
    def is_done(self) -> bool:
        """Whether it left its summary."""
        return self.summary.exists()


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m benchmarks.accuracy --train GLOB --val GLOB`."""
    config = parse_config(AccuracyConfig, "bench accuracy", argv)
    unwind_on_signals()
    runs = [
        Run(way=way, seed=seed, folder=config.out / f"seed{seed}" / way.name) for seed in config.seeds for way in WAYS
    ]
    _refuse_other_settings(config, runs)
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": software(),
    }
    print(headline(about), flush=True)
    _train_all(config, runs)
    report = {
        **about,
        "settings": {"recipe": config.recipe, "seeds": config.seeds, "jobs": config.jobs, "flags": config.flags},
        "ways": [_gather(way, [run for run in runs if run.way is way]) for way in WAYS],
    }
    write_summary(config.out / "table.json", report)
    draw_accuracies(config.out / "accuracy.png", report)
    print(f"\n{accuracy_table(report)}\n\nwritten to {config.out}/table.json and accuracy.png")


def _gather(way: Way, runs: Sequence[Run]) -> dict[str, Any]:
    wanted = ("top1", "seconds", "lam_error", "spread", "epochs", "top1_of_heads")
    found = [json.loads(run.summary.read_text()) for run in runs]
    rows = [
        {"seed": run.seed, **{name: summary[name] for name in wanted if name in summary}}
        for run, summary in zip(runs, found, strict=True)
    ]
    return {"name": way.name, "title": way.title, "flags": way.flags, "runs": rows}


def _train_all(config: AccuracyConfig, runs: Sequence[Run]) -> None:
    waiting = [run for run in runs if not run.is_done]
    print(f"{len(runs) - len(waiting)} of {len(runs)} runs are done", flush=True)
    under_way: list[_UnderWay] = []
    with ExitStack() as children:
        while waiting or under_way:
            for run in waiting[:]:
                if len(under_way) < config.jobs and _can_start(run, runs):
                    waiting.remove(run)
                    under_way.append(children.enter_context(_start(config, run, runs)))
            time.sleep(_POLL_S)
            for running in [running for running in under_way if running.child.has_ended]:
                under_way.remove(running)
                running.finish(left=len(waiting) + len(under_way))


@dataclass(frozen=True, slots=True)
class _UnderWay:
    run: Run
    child: Child

    def finish(self, *, left: int) -> None:
        """Report a run that has ended; a failed one ends all."""
        self.child.wait(_RUN_LIMIT_S, lambda _line: None)
        summary = json.loads(self.run.summary.read_text())
        figures = f"top-1 {100 * summary['top1']:.2f} % in {summary['seconds'] / 60:.1f} min"
        print(f"seed {self.run.seed}  {self.run.way.title:<26}{figures}, {left} to go", flush=True)


def _can_start(run: Run, runs: Sequence[Run]) -> bool:
    return not run.way.mixer_of or _source(run, runs).is_done


def _source(run: Run, runs: Sequence[Run]) -> Run:
    """The run that trains the mixer of another."""
    return next(other for other in runs if other.seed == run.seed and other.way.name == run.way.mixer_of)


@contextmanager
def _start(config: AccuracyConfig, run: Run, runs: Sequence[Run]) -> Iterator[_UnderWay]:
    run.folder.mkdir(parents=True, exist_ok=True)
    flags = _flags(config, run, runs)
    (run.folder / _FLAGS).write_text(json.dumps(flags))
    args = ["train", *flags, "--out", str(run.folder), "--resume", "auto"]
    with start_child("samix", args, run.folder / "run.log") as child:
        yield _UnderWay(run, child)


def _flags(config: AccuracyConfig, run: Run, runs: Sequence[Run]) -> list[str]:
    flags = [config.recipe, "--data.train", config.train, "--data.val", config.val, "--seed", str(run.seed)]
    flags += run.way.flags
    if run.way.mixer_of:
        flags += ["--mixing.artefact", str(_source(run, runs).folder / ARTEFACT)]
    return [*flags, "--metrics.port", "0", "--metrics.linger-s", "0", *config.flags]


def _refuse_other_settings(config: AccuracyConfig, runs: Sequence[Run]) -> None:
    for run in runs:
        path = run.folder / _FLAGS
        if path.exists() and json.loads(path.read_text()) != _flags(config, run, runs):
            raise ConfigError(f"{run.folder} holds a run with other settings, see {path.name}; choose another --out")


if __name__ == "__main__":
    sys.exit(main())
