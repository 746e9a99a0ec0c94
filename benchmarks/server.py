"""How much of a mixer's speed arrives through the server: `make bench`.

Bare passes and served streams take turns within each round, so that other work on the machine slows both alike: compare
the ratio, not the images/s, between machines and days.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import Cores, choose_cores, describe_machine, on_core
from benchmarks.paths import DEPTH, Case, Sample, measure_bare, measure_served
from benchmarks.server_report import Samples, summarise, table
from samix.client.config import ClientConfig
from samix.client.remote import RemoteMixer, connect
from samix.errors import ConfigError
from samix.mixing.artefact import load_mixer, save_artefact
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import resnet18_spec, tiny_spec
from services.cli import program
from services.config import parse_config
from services.malloc import tune_malloc
from trainer.children import start_child, unwind_on_signals
from trainer.provenance import software
from trainer.report import write_summary

_SHIPPED = Path(__file__).parents[1] / "mixers/samix-digits-r10.safetensors"
_READY_S = 120.0
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
        if not 1 <= self.rounds <= 99:
            raise ConfigError(f"rounds must lie in 1..99, got {self.rounds}")
        if self.json.suffix != ".json" or self.json.is_dir():
            raise ConfigError(f"json must name a file that ends in .json, got {str(self.json)!r}")


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m benchmarks.server`."""
    config = parse_config(BenchServerConfig, "bench server", argv)
    unwind_on_signals()
    tune_malloc()
    torch.set_num_threads(1)
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.unlink(missing_ok=True)  # so that a failed run leaves no figures of an older one
    report = _run(config)
    write_summary(config.json, report)
    print(f"\n{table(report['cases'])}\n\n{_HOW_TO_READ}\nwritten to {config.json}")


def _run(config: BenchServerConfig) -> dict[str, Any]:
    cores = choose_cores()
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {**software(), "grpcio": version("grpcio")},
        "pinned": {"client": cores.client, "server": cores.server},
        "settings": {"seconds": config.seconds, "rounds": config.rounds, "depth": DEPTH},
    }
    print(_headline(about), flush=True)
    cases = _cases(full=config.full)
    with on_core(cores.client), _serve(cases, cores, config.json.with_suffix(".log")) as targets:
        samples = _measure(config, cases, cores, targets)
    return {**about, "cases": [summarise(case, taken) for case, taken in zip(cases, samples, strict=True)]}


def _cases(*, full: bool) -> list[Case]:
    cases = [
        Case(mixer=load_mixer(_SHIPPED), batch_size=64),
        Case(mixer=random_mixer(tiny_spec(), seed=0, name="random-r10"), batch_size=64),
    ]
    if full:
        cases.append(Case(mixer=random_mixer(resnet18_spec(), seed=0, name="random-r18"), batch_size=16))
    return cases


@contextmanager
def _serve(cases: Sequence[Case], cores: Cores, log: Path) -> Iterator[dict[str, str]]:
    """Host the mixers of all cases in a process of its own; yields its targets by path."""
    print(f"starting a server with {', '.join(case.mixer.name for case in cases)} (log: {log})", flush=True)
    with tempfile.TemporaryDirectory(prefix="samix-bench-") as name, ExitStack() as running:
        folder = Path(name)
        for case in cases:
            save_artefact(folder / f"{case.mixer.name}.safetensors", case.mixer, {"data": "none"})
        socket = folder / "mixer.sock"
        ports = [part for port in ("grpc", "http", "metrics") for part in (f"--{port}-port", "0")]
        args = ["serve", "--mixers", name, "--device", "cpu", "--num-threads", "1", "--unix-socket", str(socket)]
        with on_core(cores.server):  # a child stays on the core it was started on
            server = running.enter_context(start_child("samix", [*args, *ports], log))
        line = server.wait_for_line("ready ", _READY_S)
        addresses = dict(part.split("=", 1) for part in line.split()[1:])
        yield {"tcp": addresses["grpc"], "unix": f"unix://{socket}"}


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


def _headline(about: dict[str, Any]) -> str:
    machine, versions, pinned = about["machine"], about["versions"], about["pinned"]
    if pinned["client"] is None:
        cores = "not bound to cores: this system cannot"
    elif pinned["client"] == pinned["server"]:
        cores = f"client and server share core {pinned['client']}, the only one: ratios are too low"
    else:
        cores = f"client on core {pinned['client']}, server on core {pinned['server']}"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']}; {cores}\n"
        f"commit {versions['commit']}, torch {versions['torch']}, grpcio {versions['grpcio']}, {about['date']}"
    )


if __name__ == "__main__":
    sys.exit(main())
