"""Hosts that train by a mixer on another one, over a network that is late and loses packets: `samix bench wan`.

Needs Linux and root. With `--weather calm` the same relay carries all packets at once, so that its own price is on both
sides of a comparison; policy `cutmix` shows what the steps cost without a mixer, most of it the gradients' way.
"""

import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.figures import check_output, describe, headline, prepare_output, publish
from benchmarks.overlap_trainer import SETTLING_STEPS
from benchmarks.wan_network import Carried, Host, Weather, check_possible, open_network
from benchmarks.wan_report import RunFigures, table
from samix.errors import ConfigError
from services.cli import ProgramFailed, program
from services.config import parse_config, resolved
from services.shards.cli import main as make_shards
from trainer.children import start_child, unwind_on_signals

Way = Literal["cutmix", "raw", "jpeg"]
WeatherName = Literal["calm", "bad"]

_READY_S = 180.0
_GRPC_PORT = 8001
_RENDEZVOUS_PORT = 29400
_HOW_TO_READ = """\
step       median time from one step to the next, on rank 0; evaluation is not in it
waited     for its mixed batch: mean of the steps of all ranks (mixer_client_wait_seconds), and its share of their time
cutmix     mixes in the trainer: what is left is the step, and gradients that cross the network"""


@dataclass(frozen=True, kw_only=True)
class BenchWanConfig:
    """Train on some hosts and mix on another, over a network that is late and loses packets."""

    recipe: str = "digits_cpu"
    """Of `samix train`."""
    mixer: Path = Path("mixers/samix-digits-r10.safetensors")
    """What the third host serves."""
    train: str = ""
    """Training shards; empty makes the digits."""
    val: str = ""
    """Shards for the evaluation; empty takes the digits'."""
    flags: str = ""
    """More flags of `samix train`, in one word: --flags="--data.global-batch 32"."""
    nodes: int = 2
    """Hosts that train, a rank on each. One waits for no gradients: its steps hide little."""
    epochs: int = 2
    """Of each run."""
    ways: tuple[Way, ...] = ("cutmix", "raw", "jpeg")
    """cutmix mixes without a server; raw and jpeg say what goes up."""
    weather: tuple[WeatherName, ...] = ("calm", "bad")
    """calm is neither late nor lossy; bad is what the next two say."""
    delay_ms: float = 20.0
    """How late each packet is, each way."""
    loss: float = 0.01
    """Share of the packets that are lost, each way."""
    congestion: str = "cubic"
    """Congestion control of TCP on the hosts."""
    seed: int = 0
    """Of the losses, and of the runs."""
    limit_s: float = 1800.0
    """Longest that one run may take."""
    json: Path = Path("runs/bench/wan.json")
    """Where to write the figures; runs and logs go beside them."""

    def __post_init__(self) -> None:
        check_output(1, self.json)
        if not 1 <= self.nodes <= 8:
            raise ConfigError(f"nodes must lie in 1..8, got {self.nodes}")
        if not 0 <= self.loss < 1:
            raise ConfigError(f"loss must be at least 0 and below 1, got {self.loss}")
        if not 0 <= self.delay_ms <= 10_000:
            raise ConfigError(f"delay-ms must lie in 0..10000, got {self.delay_ms}")
        if bool(self.train) != bool(self.val):
            raise ConfigError("train and val must both be given, or neither, which makes the digits")


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `samix bench wan`."""
    config = parse_config(BenchWanConfig, "bench wan", argv)
    check_possible()
    unwind_on_signals()
    prepare_output(config.json)
    about = describe(pinned=None, settings=resolved(config), packages=("grpcio",))
    print(headline(about, "ranks and server share them", ("grpcio",)), flush=True)
    data = _data(config)
    runs = [_run(config, weather, way, data) for weather in config.weather for way in config.ways]
    publish(config.json, {**about, "runs": [asdict(run) for run in runs]}, table(runs), _HOW_TO_READ)


def _data(config: BenchWanConfig) -> tuple[str, str]:
    if config.train:
        return config.train, config.val
    folder = config.json.parent / "digits"
    if not (folder / "index.json").exists():
        make_shards(["digits", "--out", str(folder)])
    return str(folder / "digits-train-*.tar"), str(folder / "digits-test-*.tar")


def _run(config: BenchWanConfig, weather: WeatherName, way: Way, data: tuple[str, str]) -> RunFigures:
    out = config.json.with_name(f"{config.json.stem}-{weather}-{way}")
    out.mkdir(exist_ok=True)
    is_bad = weather == "bad"
    given = Weather(
        delay_s=config.delay_ms / 1000 if is_bad else 0.0, loss=config.loss if is_bad else 0.0, seed=config.seed
    )
    print(f"{weather}, {way} (logs in {out})", flush=True)
    with open_network(config.nodes + 1, given, congestion=config.congestion) as network:
        *nodes, server = network.hosts
        _train(config, way, data, out, nodes, server)
    figures = read_run(out, weather, way, network.carried)
    print(f"  {figures}", flush=True)
    return figures


def _train(
    config: BenchWanConfig, way: Way, data: tuple[str, str], out: Path, nodes: Sequence[Host], server: Host
) -> None:
    """Serve, and train, until both nodes are done."""
    endpoint = f"{server.address}:{_GRPC_PORT}"
    mixing = ["--mixing.policy", "cutmix"]
    if way != "cutmix":
        mixing = ["--mixing.policy", "remote", "--mixing.endpoint", endpoint, "--mixing.encoding", way]
    run = [config.recipe, "--data.train", data[0], "--data.val", data[1], "--epochs", str(config.epochs)]
    run += ["--seed", str(config.seed), "--device", "cpu", "--log-every", "1", "--overwrite", "--out", str(out)]
    run += ["--metrics.port", "0", "--metrics.linger-s", "0", *mixing, *shlex.split(config.flags)]
    serve = ["serve", "--mixers", str(config.mixer), "--host", "0.0.0.0", "--grpc-port", str(_GRPC_PORT)]
    with ExitStack() as running:
        if way != "cutmix":
            mixer = running.enter_context(start_child(*_inside(server, "samix", serve), out / "mixer.log"))
            mixer.wait_for_line("ready ", _READY_S)
        children = [
            running.enter_context(start_child(*_inside(node, *_torchrun(node, nodes, run)), out / f"node-{index}.log"))
            for index, node in enumerate(nodes)
        ]
        for child in children:
            child.wait(config.limit_s, lambda _line: None)


def _torchrun(node: Host, nodes: Sequence[Host], run: Sequence[str]) -> tuple[str, list[str]]:
    launch = ["--nnodes", str(len(nodes)), "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "wan"]
    launch += ["--rdzv-endpoint", f"{nodes[0].address}:{_RENDEZVOUS_PORT}", "--local-addr", node.address]
    launch += ["--rdzv-conf", f"is_host={int(node is nodes[0])}"]  # which torchrun would ask the machine's name
    return "torch.distributed.run", [*launch, "-m", "trainer", *run]


def _inside(host: Host, module: str, args: Sequence[str]) -> tuple[str, list[str]]:
    return "benchmarks.wan_inside", [host.namespace, module, *args]


def read_run(out: Path, weather: str, way: str, carried: Carried) -> RunFigures:
    """Read what a run wrote.

    Args:
        out: its folder.
        weather: what its packets met.
        way: how it mixed.
        carried: what the relay did.

    Raises:
        ProgramFailed: if it has too few steps.
    """
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "step"]
    step_s = [
        later["seconds"] - row["seconds"]
        for row, later in pairwise(steps[SETTLING_STEPS - 1 :])
        if row["epoch"] == later["epoch"]  # else an evaluation lies between
    ]
    if len(step_s) < 2:
        raise ProgramFailed(f"{len(steps)} steps in {out} are too few to say what one takes; raise --epochs")
    summary = json.loads((out / "summary.json").read_text())
    pages = [_page(path) for path in sorted(out.glob("metrics-rank*.txt"))]
    waits, num_waits = _sum(pages, "mixer_client_wait_seconds_sum"), _sum(pages, "mixer_client_wait_seconds_count")
    return RunFigures(
        weather=weather,
        way=way,
        steps=summary["steps"],
        seconds=summary["seconds"],
        step_s=statistics.median(step_s),
        slow_step_s=statistics.quantiles(step_s, n=20)[-1],
        wait_s=waits / num_waits if num_waits else 0.0,
        wait_share=waits / _sum(pages, "trainer_step_duration_seconds_sum"),
        fallbacks=summary["fallbacks"],
        retries=summary["retries"],
        sent_mb=_sum(pages, "mixer_client_sent_bytes_total") / 1e6,
        top1=summary["top1"],
        packets=carried.packets,
        lost=carried.lost,
        crowded=carried.crowded,
        latest_ms=1000 * carried.latest_s,
    )


def _page(path: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def _sum(pages: Sequence[dict[str, Any]], name: str) -> float:
    return sum(page.get(name, 0.0) for page in pages)


if __name__ == "__main__":
    sys.exit(main())
