"""How much of a mixer's speed arrives through the server: `make bench`.

Bare passes and served streams take turns within each round, so that other work on the machine slows both alike: compare
the ratio, not the images/s, between machines and days.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import check_output, describe, headline, prepare_output, publish
from benchmarks.machine import Cores, choose_cores, on_core
from benchmarks.paths import DEPTH, Case, Sample, measure_bare, measure_served
from benchmarks.server_report import Samples, summarise, table
from benchmarks.serving import serving
from samix.client.config import ClientConfig
from samix.client.remote import RemoteMixer, connect
from samix.errors import ConfigError
from samix.mixing.artefact import load_mixer
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import resnet18_spec, tiny_spec
from services.cli import program
from services.config import parse_config
from services.malloc import tune_malloc
from trainer.children import unwind_on_signals

_PACKAGES = ("grpcio",)
_SHIPPED = Path(__file__).parents[1] / "mixers/samix-digits-r10.safetensors"
_CLIENT = ClientConfig(deadline_s=60.0)  # a pass of 64 large pictures takes seconds on one core
_HOW_TO_READ = f"""\
bare         mask_logits on uint8 images in this process, on the server's core
tcp, unix    streamed through `samix serve`, {DEPTH} batches under way; the client draws plans, sends pixels, waits for
             logits and renders the mixed images, because all of that is what a trainer waits for
of bare      share of the bare images/s, median over the rounds
client core  how busy the client is; near 100 % the client is the limit, not the server
lone         one batch at a time, from pixels to mixed images (bare: to logits)"""


@dataclass(frozen=True, kw_only=True)
class BenchServerConfig:
    """Compare a mixer behind a server with the same mixer in this process, one core each."""

    json: Path = Path("runs/bench/server.json")
    """Where to write the figures; the server's log goes beside them."""
    seconds: float = 2.0
    """Length of one measurement, in seconds; a round makes three for each mixer, and half as long ones of lone
    requests."""
    rounds: int = 3
    """How often everything is measured; medians are shown."""
    full: bool = False
    """Measure a ResNet-18 at 224 px as well."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 600:
            raise ConfigError(f"seconds must be above 0 and at most 600, got {self.seconds}")
        check_output(self.rounds, self.json)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m benchmarks.server`."""
    config = parse_config(BenchServerConfig, "bench server", argv)
    unwind_on_signals()
    tune_malloc()
    torch.set_num_threads(1)
    prepare_output(config.json)
    report = _run(config)
    publish(config.json, report, table(report["cases"]), _HOW_TO_READ)


def _run(config: BenchServerConfig) -> dict[str, Any]:
    cores = choose_cores()
    settings = {"seconds": config.seconds, "rounds": config.rounds, "depth": DEPTH}
    about = describe(pinned=asdict(cores), settings=settings, packages=_PACKAGES)
    print(headline(about, _describe_cores(cores), _PACKAGES), flush=True)
    cases = _cases(full=config.full)
    mixers = [case.mixer for case in cases]
    with on_core(cores.client), serving(mixers, cores.server, config.json.with_suffix(".log")) as served:
        samples = _measure(config, cases, cores, served.targets)
    return {**about, "cases": [summarise(case, taken) for case, taken in zip(cases, samples, strict=True)]}


def _cases(*, full: bool) -> list[Case]:
    cases = [
        Case(mixer=load_mixer(_SHIPPED), batch_size=64),
        Case(mixer=random_mixer(tiny_spec(), seed=0, name="random-r10"), batch_size=64),
    ]
    if full:
        cases.append(Case(mixer=random_mixer(resnet18_spec(), seed=0, name="random-r18"), batch_size=16))
    return cases


def _measure(config: BenchServerConfig, cases: Sequence[Case], cores: Cores, targets: dict[str, str]) -> list[Samples]:
    taken: list[Samples] = [{name: [] for name in ("bare", *targets)} for _ in cases]
    for number in range(1, config.rounds + 1):
        for case, samples in zip(cases, taken, strict=True):
            print(f"round {number} of {config.rounds}: {case.mixer.name}", flush=True)
            samples["bare"].append(_shown("bare", measure_bare(case, cores, config.seconds)))
            for name, target in targets.items():
                with _connect(case, target) as remote:
                    samples[name].append(_shown(name, measure_served(case, remote, config.seconds)))
    return taken


def _connect(case: Case, target: str) -> RemoteMixer:
    return connect(target, mixer=case.mixer.name, version=case.mixer.version, config=_CLIENT)


def _shown(path: str, sample: Sample) -> Sample:
    print(f"    {path:<5}{sample.images_per_s:>10,.0f} images/s", flush=True)
    return sample


def _describe_cores(cores: Cores) -> str:
    if cores.client is None:
        return "not bound to cores: this system cannot"
    if cores.client == cores.server:
        return f"client and server share core {cores.client}, the only one: ratios are too low"
    return f"client on core {cores.client}, server on core {cores.server}"


if __name__ == "__main__":
    sys.exit(main())
