"""Where spans go: nowhere, until a program installs a tracer.

The library knows no tracing system, only these protocols; `samix.adapters.opentelemetry` fills them.
"""

from typing import Literal, Protocol

SpanKind = Literal["client", "server"]
Attribute = str | int | float | bool


class Span(Protocol):
    """Something that takes time. Times are seconds of `time.perf_counter`. Safe for threads."""

    @property
    def traceparent(self) -> str:
        """What a peer needs to make spans below this one, as in W3C Trace Context."""
        ...

    def stage(self, name: str, started_s: float, ended_s: float) -> None:
        """Note a part of it that is over."""
        ...

    def event(self, name: str, **attributes: Attribute) -> None:
        """Note something that happened now."""
        ...

    def end(self, error: str = "") -> None:
        """End it now; `error` says how it failed. Only the first end counts."""
        ...


class Tracer(Protocol):
    """Makes spans. Must be quick and must not raise."""

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: dict[str, Attribute],
        *,
        parent: str = "",
        started_s: float | None = None,
    ) -> Span | None:
        """Start a span; None where it would not be kept.

        Args:
            name: what it is; few different ones.
            kind: which side of a request.
            attributes: of this one.
            parent: traceparent of the peer's span; empty goes below the one that is current in this thread, if any.
            started_s: when it began; None is now.
        """
        ...


_tracer: Tracer | None = None


def install(tracer: Tracer | None) -> None:
    """Let this process make spans from now on; None ends that."""
    global _tracer  # a process has one: threads, clients and servers in it share what collects spans
    _tracer = tracer


def installed() -> Tracer | None:
    """Return the tracer of this process, if there is one."""
    return _tracer
