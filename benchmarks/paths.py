"""The ways from a batch to its mix that are compared: the bare forward pass, and a server's answer."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.machine import Cores, on_core
from samix.client.remote import RemoteMixer
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import SAMIX_ALPHA, draw_plan, generator_for

DEPTH = 4
"""Batches under way while a stream is measured: the default of `stream`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One mixer at one batch size."""

    mixer: FrozenMixer
    """The mixer in this process; the server hosts the same weights."""
    batch_size: int
    """Images of each request."""

    def images(self) -> Tensor:
        """Draw a batch of noise, uint8 [B, 3, S, S] at the size the mixer was made for."""
        side = self.mixer.spec.image_size
        shape = (self.batch_size, 3, side, side)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator_for("bench"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One measurement."""

    images_per_s: float
    """With the path kept busy."""
    lone_s: tuple[float, ...]
    """Seconds of every batch that had the path for itself."""
    client_share: float = 0.0
    """Processor time of this process while a stream was measured, per second; near 1 the client is the limit."""


def measure_bare(case: Case, cores: Cores, seconds: float) -> Sample:
    """Run `mask_logits` over and over, on the server's core."""
    images = case.images()
    plan = draw_plan(len(images), alpha=SAMIX_ALPHA, generator=generator_for("bench"))
    with on_core(cores.server):
        case.mixer.mask_logits(images, plan)
        lone_s = []
        for started_s in _until(seconds):
            case.mixer.mask_logits(images, plan)
            lone_s.append(time.perf_counter() - started_s)
    return Sample(images_per_s=len(images) * len(lone_s) / sum(lone_s), lone_s=tuple(lone_s))


def measure_served(case: Case, remote: RemoteMixer, seconds: float) -> Sample:
    """Stream through a server, then send one batch at a time; from pixels to mixed images, as a trainer waits."""
    images = case.images()
    remote.mix(images, seed=0)  # connects and warms up
    started_s, cpu_s = time.perf_counter(), time.process_time()
    batches = ((images, None) for _ in _until(seconds))
    num_batches = sum(1 for _ in remote.stream(batches, seed=0, depth=DEPTH))
    elapsed_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    return Sample(
        images_per_s=len(images) * num_batches / elapsed_s,
        lone_s=_lone_requests(images, remote, seconds / 2),
        client_share=cpu_s / elapsed_s,
    )


def _lone_requests(images: Tensor, remote: RemoteMixer, seconds: float) -> tuple[float, ...]:
    lone_s = []
    for started_s in _until(seconds):
        remote.mix(images, seed=0)
        lone_s.append(time.perf_counter() - started_s)
    return tuple(lone_s)


def _until(seconds: float) -> Iterator[float]:
    """Yield the time, at least once, until `seconds` have passed."""
    end_s = time.perf_counter() + seconds
    yield time.perf_counter()
    while (now_s := time.perf_counter()) < end_s:
        yield now_s
