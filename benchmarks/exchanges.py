"""Batches through a mixer server as its client library sends them, but without blending: the wire and nothing else."""

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from samix.client.attempts import Attempt
from samix.client.channel import Connection
from samix.client.config import ClientConfig
from samix.errors import MixerError
from samix.framing import Framed
from samix.mixing.plan import SAMIX_ALPHA, draw_plan, generator_for
from samix.wire import MixCall, decode_response, encode_request

_CLIENT = ClientConfig(deadline_s=60.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """One kind of exchange."""

    name: str
    """For the table."""
    call: MixCall
    """What is asked for."""
    jpeg_quality: int | None
    """Of JPEGs that go up; None sends the exact pixels."""

    def request(self) -> Framed:
        """Fill the request."""
        return encode_request(self.call, self.jpeg_quality)

    @property
    def down_bytes(self) -> int:
        """Bytes of the answer: float16 logits at a sixteenth of the side, and the images where they are asked for."""
        images, _, height, width = self.call.pixels.shape
        logits = 2 * images * (height // 16) * (width // 16)
        return logits + (self.call.pixels.nbytes if self.call.wants_images else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """What came through in one measurement."""

    batch_s: float
    """Seconds per batch, all callers together."""
    latencies_s: tuple[float, ...]
    """Of each batch, from sending to its answer, seconds."""


def draw_call(batch_size: int, side: int, *, wants_images: bool) -> MixCall:
    """Make a batch of smooth noise, whose JPEGs are about as large as those of photos."""
    generator = generator_for("bench")
    coarse = torch.rand(batch_size, 3, side // 5, side // 5, generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    plan = draw_plan(batch_size, alpha=SAMIX_ALPHA, generator=generator)
    return MixCall(
        mixer="",
        pixels=smooth.mul(255).byte().numpy(),
        lam=plan.lam.numpy(),
        partner=plan.partner.numpy(),
        wants_images=wants_images,
    )


def measure_flow(target: str, leg: Leg, *, concurrency: int, window: int, seconds: float) -> Flow:
    """Send batches from `concurrency` clients, each with `window` of them under way.

    Raises:
        MixerError: if one was not answered.
    """
    request = leg.request()
    connections = [Connection(target, _CLIENT) for _ in range(concurrency)]
    barrier = threading.Barrier(concurrency)
    try:
        with ThreadPoolExecutor(concurrency) as callers:
            flows = list(callers.map(lambda one: _keep_busy(one, leg, request, window, seconds, barrier), connections))
    finally:
        for connection in connections:
            connection.close()
    rate = sum(1 / flow.batch_s for flow in flows)
    return Flow(batch_s=1 / rate, latencies_s=tuple(latency for flow in flows for latency in flow.latencies_s))


def _keep_busy(
    connection: Connection, leg: Leg, request: Framed, window: int, seconds: float, barrier: threading.Barrier
) -> Flow:
    answered: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
    sent_s: dict[Attempt, float] = {}

    def send() -> None:
        now_s = time.perf_counter()
        attempt = connection.start("Mix", request, _CLIENT.deadline_s)
        sent_s[attempt] = now_s
        attempt.add_done_callback(answered.put)

    send()
    _check(answered.get(), leg)  # connects, and warms up
    sent_s.clear()
    barrier.wait()
    started_s, latencies_s = time.perf_counter(), []
    for _ in range(window):
        send()
    while sent_s:
        attempt = answered.get(timeout=_CLIENT.deadline_s)
        now_s = time.perf_counter()
        latencies_s.append(now_s - sent_s.pop(attempt))
        _check(attempt, leg)
        if now_s - started_s < seconds:
            send()
    return Flow(batch_s=(time.perf_counter() - started_s) / len(latencies_s), latencies_s=tuple(latencies_s))


def _check(attempt: Attempt, leg: Leg) -> None:
    outcome = attempt.outcome
    if isinstance(outcome, MixerError):
        raise outcome
    decode_response(outcome, leg.call)


def percentiles_ms(latencies_s: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile, in milliseconds."""
    p50, p95 = np.percentile(latencies_s, (50, 95))
    return round(1e3 * float(p50), 3), round(1e3 * float(p95), 3)
