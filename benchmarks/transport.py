"""What the wire costs: batches through the server against the same bytes over bare sockets: `samix bench transport`.

The server validates, queues and groups as always; only the mixer is replaced by one that answers constants and does not
look at pixels. Bare sockets and ours take turns within each round, one core for all clients and one for the server.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.constant_server import constant_server
from benchmarks.exchanges import Leg, draw_call, measure_flow
from benchmarks.figures import check_output, describe, headline, prepare_output, publish
from benchmarks.machine import choose_cores, on_core, process_cpu_s
from benchmarks.raw_sockets import measure_raw, raw_server
from benchmarks.transport_report import Turn, summarise, table
from samix.errors import ConfigError
from services.cli import program
from services.config import parse_config
from services.malloc import tune_malloc
from trainer.children import unwind_on_signals

_PACKAGES = ("grpcio", "protobuf")
LIMITS = {"echo": 0.5, "masks": 0.42, "images": 0.55, "jpeg": 0.45}
"""Least share of bare TCP that each leg has to reach."""
WAYS = ((1, 1), (1, 4), (2, 1), (2, 4), (4, 1), (4, 4))
"""Numbers of clients, and of batches each has under way; the best way counts."""
_HOW_TO_READ = """\
echo      exact pixels up, mixed images down
masks     exact pixels up, mask logits down: what training does
images    JPEGs up, mixed images down: what a thin client does
jpeg      JPEGs up, mask logits down: what training over a thin link does
bare      the same bytes over a blocking socket, one exchange after another
of bare   speed of ours as a share of that, median over the rounds; the best of the clients x windows tried
server    processor time of the server per batch"""


@dataclass(frozen=True, kw_only=True)
class BenchTransportConfig:
    """Compare the server's transport with bare sockets, client and server on a core each."""

    json: Path = Path("runs/bench/transport.json")
    """Where to write the figures; the servers' logs go beside them."""
    seconds: float = 1.0
    """Length of one measurement, in seconds; a round makes fourteen for each kind of exchange."""
    rounds: int = 3
    """How often everything is measured; medians are shown."""
    batch_size: int = 64
    """Images of a batch."""
    side: int = 224
    """Side of the images, in pixels."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 600:
            raise ConfigError(f"seconds must be above 0 and at most 600, got {self.seconds}")
        if not (1 <= self.batch_size <= 256 and 32 <= self.side <= 512):
            raise ConfigError(f"batch-size must lie in 1..256 and side in 32..512, got {self.batch_size}, {self.side}")
        check_output(self.rounds, self.json)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `samix bench transport`."""
    config = parse_config(BenchTransportConfig, "bench transport", argv)
    unwind_on_signals()
    tune_malloc()
    prepare_output(config.json)
    report = _run(config)
    publish(config.json, report, table(report["legs"]), _HOW_TO_READ)


def _run(config: BenchTransportConfig) -> dict[str, Any]:
    cores = choose_cores()
    settings = {name: getattr(config, name) for name in ("seconds", "rounds", "batch_size", "side")}
    about = describe(pinned=asdict(cores), settings=settings, packages=_PACKAGES)
    print(headline(about, f"clients on core {cores.client}, servers on core {cores.server}", _PACKAGES), flush=True)
    legs = _legs(config)
    log = config.json.with_suffix(".log")
    with tempfile.TemporaryDirectory(prefix="samix-bench-") as name, on_core(cores.client):
        folder = Path(name)
        with raw_server(folder, cores.server) as raw, constant_server(folder, cores.server, log) as served:
            turns = [_round(config, number, legs, raw, served) for number in range(1, config.rounds + 1)]
    return {**about, "legs": [summarise(leg.name, turns, LIMITS[leg.name]) for leg in legs]}


def _legs(config: BenchTransportConfig) -> list[Leg]:
    masks = draw_call(config.batch_size, config.side, wants_images=False)
    images = draw_call(config.batch_size, config.side, wants_images=True)
    return [
        Leg(name="echo", call=images, jpeg_quality=None),
        Leg(name="masks", call=masks, jpeg_quality=None),
        Leg(name="images", call=images, jpeg_quality=90),
        Leg(name="jpeg", call=masks, jpeg_quality=90),
    ]


def _round(
    config: BenchTransportConfig, number: int, legs: Sequence[Leg], raw: dict[str, str], served: Any
) -> list[Turn]:
    turns = []
    for leg in legs:
        print(f"round {number} of {config.rounds}: {leg.name}", flush=True)
        up = leg.request().bulk.nbytes
        for link, target in served.targets.items():
            for concurrency, window in WAYS:
                # Before each of ours, so that both met the machine as it was within the same seconds.
                bare_s = measure_raw(raw[link], up, leg.down_bytes, config.seconds / 2)
                before_s = process_cpu_s(served.process_id)
                flow = measure_flow(target, leg, concurrency=concurrency, window=window, seconds=config.seconds)
                cpu_s = (process_cpu_s(served.process_id) - before_s) / len(flow.latencies_s)
                turns.append(
                    Turn(
                        leg=leg.name,
                        link=link,
                        way=(concurrency, window),
                        up_bytes=up,
                        down_bytes=leg.down_bytes,
                        bare_s=bare_s,
                        flow=flow,
                        server_cpu_s=cpu_s,
                    )
                )
                print(f"    {turns[-1]}", flush=True)
    return turns


if __name__ == "__main__":
    sys.exit(main())
