"""What a training step costs with each way of mixing: `python -m benchmarks.steps`.

Seconds are of processor time, on one thread bound to one core: a process that waits for its turn is not charged for it.
Others still spoil its caches, so everything takes turns within each round: compare the ratios.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from benchmarks.figures import check_output, describe, headline, prepare_output, publish
from benchmarks.machine import choose_cores, on_core
from benchmarks.online_parts import OnlineParts
from benchmarks.step_works import (
    ENCODER,
    ONLINE,
    ONLINE_CLEAN,
    SAMIX_P,
    SAMIX_P_MIX,
    Setting,
    Subject,
    Work,
    mixer_passes,
    whole_steps,
)
from benchmarks.steps_report import Section, summarise, table
from samix.mixing.policies import PolicyName
from services.cli import program
from services.config import parse_config
from services.malloc import tune_malloc

_USUAL: tuple[PolicyName, ...] = ("none", "mixup", "cutmix")
_REFERENCE: PolicyName = "cutmix"
_SUM = "sum of the parts"
_HOW_TO_READ = """\
seconds        of processor time, median over the rounds
ratio          to CutMix, to the sum of the parts, to the encoder alone; median of what each round says
limit          of a ResNet-18 with CIFAR stem, 64 px, batches of 32
Counted in forwards of that network (a backward is two, the encoder 0.77), a CutMix step is 3, one of SAMix^P 3.77, of
SAMix online 5.77, and 8.77 where the classifier sees clean images too: ratios of 1.26, 1.92 and 2.92."""


@dataclass(frozen=True, kw_only=True)
class BenchStepsConfig(Setting):
    """Compare training steps of the ways to mix, on one core."""

    policies: Literal["usual", "all"] = "usual"
    """Hand-crafted policies to time: none, Mixup and CutMix, or all of them."""
    rounds: int = 6
    """How often everything is measured; medians are shown. Even, so that as many rounds go backwards as forwards."""
    json: Path = Path("runs/bench/steps.json")
    """Where to write the figures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_output(self.rounds, self.json)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m benchmarks.steps`."""
    config = parse_config(BenchStepsConfig, "bench steps", argv)
    tune_malloc()
    torch.set_num_threads(1)
    prepare_output(config.json)
    report = _run(config)
    publish(config.json, report, table(report["sections"]), _HOW_TO_READ)


def _run(config: BenchStepsConfig) -> dict[str, Any]:
    core = choose_cores().server
    about = describe(pinned=core, settings=asdict(config))
    where = "not bound to a core: this system cannot" if core is None else f"on core {core}"
    print(headline(about, f"one thread, {where}"), flush=True)
    with on_core(core):
        subject = Subject.build(config)
        steps = whole_steps(subject, get_args(PolicyName) if config.policies == "all" else _USUAL)
        parts, passes = OnlineParts.build(subject).works(), mixer_passes(subject)
        seconds = _measure({**steps, **parts, **passes}, config.rounds)
    seconds[_SUM] = [sum(taken) for taken in zip(*(seconds[name] for name in parts), strict=True)]
    sections = (
        Section(
            title="a training step",
            works=tuple(steps),
            reference=_REFERENCE,
            limits={SAMIX_P: 1.35, ONLINE: 3.3, ONLINE_CLEAN: 3.3},
        ),
        Section(title="parts of SAMix online", works=(*parts, _SUM, ONLINE), reference=_SUM, limits={ONLINE: 1.08}),
        Section(title="a frozen mixer", works=tuple(passes), reference=ENCODER, limits={SAMIX_P_MIX: 1.15}),
    )
    return {**about, "sections": [summarise(section, seconds) for section in sections]}


def _measure(works: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Time every work once a round; every other round goes backwards, so that what drifts does so for both."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    print("warming up", flush=True)
    for work in works.values():
        work()
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", flush=True)
        for name in list(works)[:: 1 if number % 2 else -1]:
            started_s = time.process_time()
            works[name]()
            taken[name].append(time.process_time() - started_s)
    return taken


if __name__ == "__main__":
    sys.exit(main())
