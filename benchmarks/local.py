"""How fast the engine is in this process: the ceiling of every server on this machine.

    samix bench local

Forward passes at several batch sizes, in ways that take turns within each round so that other work slows all alike, and
pictures decoded per second.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.figures import check_output, describe, headline, prepare_output, publish
from benchmarks.local_report import table
from mixer_server.engine.compiling import check_compiler, compile_encoder
from mixer_server.engine.cores import usable_cores
from mixer_server.engine.decoding import Decoder
from mixer_server.engine.passes import run_pass
from samix.errors import ConfigError
from samix.jpeg import JpegBatch, encode_images
from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.plan import SAMIX_ALPHA, draw_plan, generator_for
from samix.mixing.presets import resnet18_spec, tiny_spec
from samix.wire import MixCall
from services.cli import program
from services.config import parse_config
from services.malloc import tune_malloc

_PACKAGES = ("simplejpeg",)
_JPEG_QUALITY = 90
_HOW_TO_READ = """\
forward      mask_logits on uint8 images
whole pass   the same with all that a server's engine does around it
rows first   forward, with the encoder's weights and features row by row instead of channel by channel
bf16         forward, with the encoder in bfloat16
compiled     forward, with the encoder compiled (--compile)
jpeg         pictures decoded; photographs decode a little faster than the noise in slopes that is decoded here"""

Way = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class BenchLocalConfig:
    """Measure forward passes in this process."""

    json: Path = Path("runs/bench/local.json")
    """Where to write the figures."""
    batch_sizes: tuple[int, ...] = (1, 4, 16, 64)
    """Images of a pass."""
    threads: tuple[int, ...] = ()
    """Numbers of threads; none are 1 and all cores."""
    seconds: float = 2.0
    """Least length of one measurement, in seconds."""
    rounds: int = 3
    """How often everything is measured; medians are shown."""
    compile: bool = False
    """Measure compiled encoders as well, which takes minutes to make."""
    small: bool = False
    """Leave the ResNet-18 at 224 px out."""

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "threads"):
            if not all(1 <= number <= 4096 for number in getattr(self, name)):
                raise ConfigError(f"{name.replace('_', '-')} must lie in 1..4096, got {getattr(self, name)}")
        if not 0 < self.seconds <= 600:
            raise ConfigError(f"seconds must be above 0 and at most 600, got {self.seconds}")
        check_output(self.rounds, self.json)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `samix bench local`."""
    config = parse_config(BenchLocalConfig, "bench local", argv)
    if config.compile:
        check_compiler()
    tune_malloc()
    prepare_output(config.json)
    settings = {name: getattr(config, name) for name in ("batch_sizes", "seconds", "rounds", "compile")}
    about = describe(pinned=None, settings=settings, packages=_PACKAGES)
    print(headline(about, f"{usable_cores()} usable cores, not bound", _PACKAGES), flush=True)
    cases = [
        case for mixer in _mixers(config) for threads in _threads(config) for case in _measure(config, mixer, threads)
    ]
    report = {**about, "cases": cases, "jpeg": [_measure_jpeg(config, threads) for threads in _threads(config)]}
    publish(config.json, report, table(report["cases"], report["jpeg"]), _HOW_TO_READ)


def _mixers(config: BenchLocalConfig) -> list[FrozenMixer]:
    mixers = [random_mixer(tiny_spec(), seed=0, name="resnet10 / 4")]
    if not config.small:
        mixers.append(random_mixer(resnet18_spec(), seed=0, name="resnet18"))
    return mixers


def _threads(config: BenchLocalConfig) -> Sequence[int]:
    return config.threads or sorted({1, usable_cores()})


def _measure(config: BenchLocalConfig, mixer: FrozenMixer, threads: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    others = _variants(config, mixer)
    cases = []
    for batch_size in config.batch_sizes:
        images, plan = _batch(mixer, batch_size)
        call = MixCall(mixer="", pixels=images.numpy(), lam=plan.lam.numpy(), partner=plan.partner.numpy())
        ways: dict[str, Way] = {
            "forward": lambda images=images, plan=plan: mixer.mask_logits(images, plan),
            "whole pass": lambda call=call: run_pass(mixer, [call]),
            "bf16": lambda images=images, plan=plan: mixer.mask_logits(images, plan, precision=torch.bfloat16),
        }
        for name, other in others.items():
            ways[name] = lambda other=other, images=images, plan=plan: other.mask_logits(images, plan)
        speeds = _speeds(ways, batch_size, config)
        cases.append({"mixer": mixer.name, "side": images.shape[-1], "threads": threads, "batch_size": batch_size,
                      "images_per_s": speeds})  # fmt: skip
        print(f"{mixer.name}, {threads} threads, {batch_size} images: {speeds['forward']:,.0f} images/s", flush=True)
    return cases


def _variants(config: BenchLocalConfig, mixer: FrozenMixer) -> dict[str, FrozenMixer]:
    variants = {"rows first": random_mixer(mixer.spec, seed=0, name="rows first")}
    for parameter in variants["rows first"].net.encoder.parameters():
        parameter.data = parameter.data.contiguous()
    if config.compile:
        variants["compiled"] = random_mixer(mixer.spec, seed=0, name="compiled")
        compile_encoder(variants["compiled"], mixer.spec.image_size, torch.float32)
    return variants


def _batch(mixer: FrozenMixer, batch_size: int) -> tuple[Tensor, MixPlan]:
    generator = generator_for("bench")
    shape = (batch_size, 3, mixer.spec.image_size, mixer.spec.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images, draw_plan(batch_size, alpha=SAMIX_ALPHA, generator=generator)


def _measure_jpeg(config: BenchLocalConfig, threads: int) -> dict[str, Any]:
    slopes = np.linspace(0, 180, 224)[:, None] + np.random.default_rng(0).integers(0, 20, (64, 3, 224, 224))
    pictures = encode_images(slopes.astype(np.uint8), _JPEG_QUALITY)
    lengths = [len(picture) for picture in pictures]
    batch = JpegBatch(data=b"".join(pictures), lengths=lengths, shape=(64, 3, 224, 224))
    with closing(Decoder(threads)) as decoder:
        ways: dict[str, Way] = {"decode": lambda: decoder.decode(batch), "check": batch.check}
        speeds = _speeds(ways, len(pictures), config)
    return {"threads": threads, "side": 224, "bytes": round(np.mean(lengths)), "images_per_s": speeds}


def _speeds(ways: dict[str, Way], num_images: int, config: BenchLocalConfig) -> dict[str, float]:
    """Let the ways take turns; images/s of each, median over the rounds."""
    for run in ways.values():
        run()
    rounds = [
        {name: _speed(run, num_images, config.seconds) for name, run in ways.items()} for _ in range(config.rounds)
    ]
    return {name: round(median(speeds[name] for speeds in rounds), 1) for name in ways}


def _speed(run: Way, num_images: int, seconds: float) -> float:
    started_s, done = time.perf_counter(), 0
    while time.perf_counter() - started_s < seconds:
        run()
        done += num_images
    return done / (time.perf_counter() - started_s)


if __name__ == "__main__":
    sys.exit(main())
