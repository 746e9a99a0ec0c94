"""Whether mixing hides behind the step: `make bench-overlap`.

Two real trainings take turns on one core: one with SAMix^P from a real `samix serve` on the other core, one with CutMix
beside a neighbour there that runs the same mixer's bare forward as often, but serves nobody. What is left between the
two is what the service costs the trainer, not the heat of a busy machine.
"""

import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import check_output, describe, headline, prepare_output, publish
from benchmarks.machine import choose_cores
from benchmarks.overlap_neighbour import Neighbour, neighbour
from benchmarks.overlap_report import LOCAL, REMOTE, summarise, table
from benchmarks.overlap_trainer import SETTLING_STEPS, SteppingTrainer, Turn, stepping
from benchmarks.repeated_shards import link_repeatedly, local_shards
from benchmarks.serving import Served, serving
from samix.errors import ConfigError
from samix.mixing.backbone import BackboneSpec
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.presets import IMAGENET_MEAN, IMAGENET_STD, samix_spec
from services.cli import ProgramFailed, program
from services.config import parse_config
from services.shards.index import open_shards
from services.shards.reader import count_classes
from trainer.children import unwind_on_signals

_PACKAGES = ("grpcio",)
_MIXER = "bench"
_RECIPE = "photo_cpu"
_LOCAL_FLAGS = ("--mixing.policy", "cutmix")
_SPARE_STEPS = 32
"""Of a trainer that warms up, and that is stopped a little after its turn."""
_DEADLINE_S = 600.0  # a trainer stands still while batches are under way
_HOW_TO_READ = """\
step        from one step of the optimiser to the next; median over its rounds of each round's median
CPU         processor time of the trainer in a step: where it is below the step, the core did other work too
waited      for the mixed batch, blending included (`mixer_client_wait_seconds`); CutMix mixes in that time
other core  processor time there: of the server, or of the unconnected neighbour"""


@dataclass(frozen=True, kw_only=True)
class BenchOverlapConfig:
    """Compare training steps beside a mixer server with CutMix steps beside the same load, one core each."""

    shards: str
    """Local shards to train on: a path, a glob or a pattern with braces (quote it)."""
    rounds: int = 15
    """How often both trainers have their turn; medians are shown."""
    steps: int = 8
    """Steps that are measured in a turn."""
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    """Of the classifier and of the mixer's encoder."""
    stage: int = 2
    """Zero-based stage whose features are mixed: the encoder's last."""
    image_size: int = 64
    """Side of the images, pixels."""
    batch_size: int = 32
    """Images of a step."""
    json: Path = Path("runs/bench/overlap.json")
    """Where to write the figures; the logs of server and trainers go beside them."""

    def __post_init__(self) -> None:
        check_output(self.rounds, self.json)
        for name in ("steps", "image_size", "batch_size"):
            if not 1 <= getattr(self, name) <= 4096:
                raise ConfigError(f"{name} must lie in 1..4096, got {getattr(self, name)}")

    def mixer(self) -> FrozenMixer:
        """Make the mixer; its weights are random, which costs the same."""
        spec = samix_spec(
            self.backbone, mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=self.image_size, stage=self.stage
        )
        return random_mixer(spec, seed=0, name=_MIXER)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m benchmarks.overlap --shards GLOB`."""
    config = parse_config(BenchOverlapConfig, "bench overlap", argv)
    cores = choose_cores()
    if cores.client is None or cores.client == cores.server:
        raise ConfigError(f"trainer and mixer need a core each, there are {os.cpu_count()}; run this on Linux with two")
    unwind_on_signals()
    prepare_output(config.json)
    report = _run(config)
    publish(config.json, report, table(report), _HOW_TO_READ)
    if not report["is_within"]:
        raise ProgramFailed("the step is slower, or waits longer, than was promised; see the table")


def _run(config: BenchOverlapConfig) -> dict[str, Any]:
    cores = choose_cores()
    about = describe(pinned=asdict(cores), settings={**asdict(config), "recipe": _RECIPE}, packages=_PACKAGES)
    print(headline(about, f"trainers on core {cores.client}, mixer on core {cores.server}", _PACKAGES), flush=True)
    with tempfile.TemporaryDirectory(prefix="samix-bench-") as name, ExitStack() as running:
        folder, mixer = Path(name), config.mixer()
        flags = _train_flags(config, folder)
        served = running.enter_context(serving([mixer], cores.server, config.json.with_suffix(".log")))
        beside = running.enter_context(neighbour(served.artefacts[mixer.name], config.batch_size, cores.server))
        trainers = {}
        for kind, policy in ((REMOTE, _remote_flags(served)), (LOCAL, _LOCAL_FLAGS)):
            print(f"starting a trainer with {kind}", flush=True)
            word = policy[1]
            log = config.json.with_name(f"{config.json.stem}-{word}.log")
            trainers[kind] = running.enter_context(stepping([*flags, *policy], cores.client, folder / word, log))
        turns = _measure(config, trainers, served, beside)
    return {**about, **summarise(turns)}


def _measure(
    config: BenchOverlapConfig, trainers: Mapping[str, SteppingTrainer], served: Served, beside: Neighbour
) -> dict[str, list[Turn]]:
    """Let the trainers take turns; the neighbour runs as many passes as the server before it was asked for."""
    taken: dict[str, list[Turn]] = {name: [] for name in trainers}
    for number in range(1, config.rounds + 1):
        print(f"round {number} of {config.rounds}", flush=True)
        taken[REMOTE].append(trainers[REMOTE].take_turn(config.steps, beside=served.process_id))
        period_s = median(taken[REMOTE][-1].step_s)
        with beside.pacing(period_s):
            taken[LOCAL].append(trainers[LOCAL].take_turn(config.steps, beside=beside.process_id))
        step_s = median(taken[LOCAL][-1].step_s)
        print(f"    {1e3 * period_s:.1f} ms/step, CutMix {1e3 * step_s:.1f} beside {beside.passes} passes", flush=True)
    return taken


def _train_flags(config: BenchOverlapConfig, folder: Path) -> list[str]:
    """Complete the flags of `samix train` but for the mixing: one long epoch, so that nothing comes between steps."""
    paths = local_shards(config.shards)
    shards = open_shards(config.shards)
    num_steps = (config.rounds + 1) * (config.steps + SETTLING_STEPS) + _SPARE_STEPS
    repeated = link_repeatedly(paths, folder, math.ceil(num_steps * config.batch_size / shards.total))
    flags = {
        "data.train": repeated,
        "data.val": config.shards,
        "data.num-classes": count_classes(shards),
        "data.image-size": config.image_size,
        "data.eval-resize": 0,
        "data.global-batch": config.batch_size,
        "data.num-workers": 0,  # a worker would share the core
        "model.backbone.name": config.backbone.name,
        "model.backbone.stem": config.backbone.stem,
        "checkpoint.every-s": 0,
        "metrics.port": 0,
        "metrics.linger-s": 0,
        "device": "cpu",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    for name in ("layers", "channels"):
        if numbers := getattr(config.backbone, name):
            words += [f"--model.backbone.{name}", *map(str, numbers)]
    return [_RECIPE, *words]


def _remote_flags(served: Served) -> Sequence[str]:
    flags = {
        "mixing.policy": "remote",
        "mixing.endpoint": served.targets["tcp"],
        "mixing.deadline-s": _DEADLINE_S,
        "mixing.failure-budget": 0,  # a batch of the fallback would end the trainer: it costs something else
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


if __name__ == "__main__":
    sys.exit(main())
