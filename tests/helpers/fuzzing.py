"""Many inputs, each of which must be answered in time, with a sentence if it is refused."""

import os
import random
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from child_server import ChildServer, Resources
from google.rpc import error_details_pb2
from grpc_status import rpc_status

Code = grpc.StatusCode

NUM_INPUTS = int(os.environ.get("SAMIX_FUZZ_INPUTS") or 1000)
"""Of all paths together."""
SEED = int(os.environ.get("SAMIX_FUZZ_SEED") or secrets.randbelow(10**9))
"""From which each input is made, by its path and number."""
ANSWER_S = 30.0
"""Longest an answer may take, on a busy machine."""
REFUSALS = frozenset({Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND})
"""What nonsense is answered with, or what turns out to be none."""

_WINDOW = 8
_WARM_UP = 0.05
_MIB = 1 << 20
_MAX_GROWTH_BYTES = 160 * _MIB  # malloc is told to keep what the largest inputs took; a leak grows with their number
_MAX_PEAK_BYTES = 192 * _MIB  # of the inputs under way together: of 4 MiB each, copied here and there
_MAX_MORE_THREADS = 24  # pools grow by a thread whenever a job comes just before another one ends


def generator(path: str, number: int) -> random.Random:
    """Make the generator of one input; each is the same in every run of one seed."""
    return random.Random(f"{SEED}/{path}/{number}")


@dataclass(kw_only=True)
class Tally:
    """What became of the inputs of one path."""

    path: str
    """What was fuzzed."""
    share: float
    """Of all inputs."""
    inputs: int = 0
    """So far."""
    codes: Counter[str] = field(default_factory=Counter)
    """How they were answered."""
    slowest_s: float = 0.0
    """Longest that one took, in seconds."""
    seconds: float = 0.0
    """That all took together."""
    before: Resources | None = None
    """What the server held before, where there is one."""
    after: Resources | None = None
    """What it holds after."""

    def numbers(self) -> range:
        """Number the inputs; negative ones are for warming up."""
        num_inputs = int(NUM_INPUTS * self.share)
        return range(-int(num_inputs * _WARM_UP), num_inputs)

    def count(self, code: str, seconds: float = 0.0) -> None:
        """Count an answer."""
        self.inputs += 1
        self.codes[code] += 1
        self.slowest_s = max(self.slowest_s, seconds)

    def line(self) -> str:
        """Say all of it."""
        codes = " ".join(f"{code}={count}" for code, count in self.codes.most_common())
        line = f"{self.path}: {self.inputs} inputs, {codes}, {self.seconds:.1f} s, slowest {self.slowest_s:.2f} s"
        if self.before is None or self.after is None:
            return line
        before, after = self.before.resident_bytes / _MIB, self.after.resident_bytes / _MIB
        peak = self.after.peak_bytes / _MIB
        return f"{line}, resident {before:.0f} MiB before and {after:.0f} after, {peak:.0f} at most"


@contextmanager
def timed(tally: Tally) -> Iterator[None]:
    """Time all inputs of a path."""
    started_s = time.perf_counter()
    try:
        yield
    finally:
        tally.seconds += time.perf_counter() - started_s


def fuzz(
    server: ChildServer,
    tally: Tally,
    ask_well: Callable[[], bytes],
    send: Callable[[int], None],
    land: Callable[[], None] = lambda: None,
) -> None:
    """Send all inputs of a path, and check that the server is then what it was when it was warm.

    Args:
        server: is fuzzed.
        tally: counts.
        ask_well: asks the server for something sensible, always the same.
        send: sends the input of a number.
        land: waits for those that are under way.
    """
    numbers = tally.numbers()
    for number in numbers[: -numbers.start]:
        send(number)
    land()
    with _steady(server, tally, ask_well):
        for number in numbers[-numbers.start :]:
            send(number)
        land()


@contextmanager
def _steady(server: ChildServer, tally: Tally, ask_well: Callable[[], bytes]) -> Iterator[None]:
    answer = ask_well()
    before = server.resources()
    server.wait_until_idle(before.descriptors)
    server.forget_peak()
    with timed(tally):
        yield
    assert server.process.poll() is None, f"the server died ({server.process.returncode}): {server.complaints()}"
    assert ask_well() == answer
    server.wait_until_idle(before.descriptors)
    assert not (complaints := server.complaints()), "\n".join(complaints[:20])
    after = server.resources()
    tally.before, tally.after = before, after
    assert after.resident_bytes - before.resident_bytes < _MAX_GROWTH_BYTES, tally.line()
    assert after.peak_bytes - before.resident_bytes < _MAX_PEAK_BYTES, tally.line()
    assert after.threads - before.threads <= _MAX_MORE_THREADS, f"{before.threads} threads became {after.threads}"


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A call that is under way."""

    name: str
    """Of its input, with which it can be made again."""
    call: Any
    """A future of gRPC."""
    started_s: float
    """When it was made."""
    may_end: frozenset[grpc.StatusCode]
    """How."""
    check: Callable[[bytes], None]
    """Looks at what it answers."""


class Volley:
    """Makes calls, several at a time, and judges their answers in order. `land` at the end."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._flying: deque[Shot] = deque()

    def fire(
        self,
        number: int,
        data: bytes,
        method: Callable[..., Any],
        *,
        may_end: frozenset[grpc.StatusCode] = REFUSALS,
        check: Callable[[bytes], None] = lambda _answer: None,
        **settings: Any,
    ) -> Any:
        """Make a call; returns it."""
        call = method(data, **({"timeout": ANSWER_S} | settings))
        name = f"input {number} of {self._tally.path}, SAMIX_FUZZ_SEED={SEED}: {data[:300].hex()}"
        self._flying.append(Shot(name=name, call=call, started_s=time.perf_counter(), may_end=may_end, check=check))
        if len(self._flying) >= _WINDOW:
            self._judge(self._flying.popleft())
        return call

    def land(self) -> None:
        """Judge those that are left."""
        while self._flying:
            self._judge(self._flying.popleft())

    def _judge(self, shot: Shot) -> None:
        code = shot.call.code()
        assert code in shot.may_end, f"{code}: {shot.call.details()}; {shot.name}"
        if code is Code.OK:
            shot.check(shot.call.result())
        elif code not in (Code.CANCELLED, Code.DEADLINE_EXCEEDED):
            check_sentence(shot.call.details() or "", shot.name)
        assert code is not Code.RESOURCE_EXHAUSTED or says_when(shot.call), shot.name
        self._tally.count(code.name, time.perf_counter() - shot.started_s)


def check_sentence(sentence: str, name: str) -> None:
    """Check that a refusal says something to a person."""
    assert len(sentence.split()) >= 4, f"no sentence: {sentence!r}; {name}"


def says_when(call: Any) -> bool:
    """Tell whether a refusal says when to come again, or is gRPC's own, of a message that is too large."""
    if "larger than max" in call.details():
        return True
    status = rpc_status.from_call(call)
    return status is not None and any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
