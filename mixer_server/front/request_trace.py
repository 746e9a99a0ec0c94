"""Spans of what the server does for one request: one for all of it, and one for each stage below."""

import time

from mixer_server.scheduling.job import Job
from samix import tracing
from samix.tracing import Span

_MAX_PARENT = 256  # characters; W3C Trace Context has 55 now


def start_span(method: str, key: str, parent: str, began_s: float) -> Span | None:
    """Start the span of a request; None where nothing is traced.

    Args:
        method: of gRPC.
        key: of the request.
        parent: traceparent of the client's span, if it has one; what is far too long for one is none.
        began_s: when it began to come, on the clock of `time.perf_counter`.
    """
    tracer = tracing.installed()
    if tracer is None:
        return None
    if len(parent) > _MAX_PARENT:  # whoever parses it may need time by the square of its length
        parent = ""
    return tracer.start(method, "server", {"samix.request": key}, parent=parent, started_s=began_s)


def note_stage(span: Span | None, name: str, started_s: float) -> None:
    """Note a stage that began at a time of `time.perf_counter`, and ends now."""
    if span is not None:
        span.stage(name, started_s, time.perf_counter())


def note_passage(job: Job, now_s: float) -> None:
    """Note how long a job waited and was computed, once it is over in whatever way; `now_s` on the batcher's clock."""
    if job.span is None or not job.arrived_s:
        return
    shift_s = time.perf_counter() - now_s
    job.span.stage("queue", job.arrived_s + shift_s, (job.started_s or now_s) + shift_s)
    if job.started_s:
        job.span.stage("compute", job.started_s + shift_s, (job.ended_s or now_s) + shift_s)
