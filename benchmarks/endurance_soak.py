"""Whether a server is the same after a day's work: as much memory, as many threads and descriptors."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.endurance_acts import ACTS, Caller, cancel_stream
from benchmarks.endurance_crowd import Crowd
from benchmarks.endurance_report import Check, PartReport
from benchmarks.endurance_servers import Running, Usage, artefact_of, running_server
from benchmarks.machine import Cores
from samix.errors import ConfigError
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import tiny_spec
from services.cli import ProgramFailed

_GROWTH_PERCENT = 1.0
_WARM_UP_SHARE = 0.1
"""Of the cancelled streams, that are cancelled before memory is looked at."""
_CROWDING = 3
"""How many more clients the warm-up has: threads are made for as many calls as ever came together, and kept."""
_REST_S = 60.0
_POLL_S = 0.5
_FAULTS = ("INTERNAL", "UNKNOWN")


@dataclass(frozen=True, kw_only=True, slots=True)
class SoakConfig:
    """Cancelled streams, then a mixed load."""

    streams: int = 20_000
    """Streams that are cancelled."""
    seconds: float = 600.0
    """Length of the mixed load, in seconds."""
    warm_up_s: float = 60.0
    """Length of the same load before memory is looked at, by more clients, in seconds."""
    clients: int = 8
    """Clients at once."""

    def __post_init__(self) -> None:
        if not (0 <= self.streams <= 10_000_000 and 1 <= self.clients <= 64):
            raise ConfigError(
                f"soak.streams must lie in 0..10000000 and soak.clients in 1..64, got {self.streams}, {self.clients}"
            )
        for name in ("seconds", "warm_up_s"):
            if not 0 < getattr(self, name) <= 1_000_000:
                raise ConfigError(
                    f"soak.{name.replace('_', '-')} must be above 0 and at most 1000000, got {getattr(self, name)}"
                )


def run_soak(config: SoakConfig, cores: Cores, log: Path) -> PartReport:
    """Warm a server up, look at it, wear it, and look again."""
    mixer = random_mixer(tiny_spec(), seed=0, name="random-r10")
    with artefact_of(mixer) as artefact, running_server(artefact, cores.server, log) as server:
        soak = _Soak(config, server)
        soak.run()
    return PartReport(name="soak", checks=soak.checks(), details=soak.details())


class _Soak:
    """One server and what is done to it."""

    def __init__(self, config: SoakConfig, server: Running) -> None:
        self._config = config
        self._server = server
        self._lock = threading.Lock()
        self._codes: Counter[str] = Counter()
        self._surprises: Counter[str] = Counter()
        self._usages: dict[str, Usage] = {}
        self._faults = 0.0

    def run(self) -> None:
        """Do all of it."""
        config = self._config
        self._rest("start")
        self._cancel_streams("warm-up", round(_WARM_UP_SHARE * config.streams), _CROWDING * config.clients)
        self._load("warm-up", config.warm_up_s, _CROWDING * config.clients)
        self._rest("warm")
        self._cancel_streams("cancelled streams", config.streams, config.clients)
        self._rest("after cancelled streams")
        self._load("mixed load", config.seconds, config.clients)
        self._rest("after mixed load")
        self._faults = sum(self._server.metric("mixer_requests_total", code=code) for code in _FAULTS)

    def checks(self) -> list[Check]:
        """Compare with what was promised."""
        start, warm = self._usages["start"], self._usages["warm"]
        after, last = self._usages["after cancelled streams"], self._usages["after mixed load"]
        faults = self._faults + sum(self._codes[code] for code in _FAULTS)
        return [
            _at_most("growth of memory by cancelled streams", _growth(warm, after), _GROWTH_PERCENT, " %"),
            _at_most("growth of memory by all", _growth(warm, last), _GROWTH_PERCENT, " %"),
            _at_most("descriptors more than at the start", last.num_descriptors - start.num_descriptors, 0),
            _at_most("threads more than after the warm-up", last.num_threads - warm.num_threads, 0),
            _at_most("INTERNAL and UNKNOWN", faults, 0),
            _at_most("other statuses than expected", self._surprises.total(), 0),
        ]

    def details(self) -> dict[str, object]:
        """List what else was seen."""
        return {
            "settings": asdict(self._config),
            "usage": {name: asdict(usage) for name, usage in self._usages.items()},
            "statuses": dict(self._codes),
            "surprises": dict(self._surprises),
        }

    def _cancel_streams(self, name: str, count: int, num_clients: int) -> None:
        numbers = iter(range(count))

        def cancel(caller: Caller) -> bool:
            with self._lock:
                number = next(numbers, None)
            if number is None:
                return False
            self._note(Counter([cancel_stream(caller, number)]), Counter())
            return True

        self._let(f"{name}: {count} streams", num_clients, cancel)

    def _load(self, name: str, seconds: float, num_clients: int) -> None:
        ends_s = time.monotonic() + seconds

        def act(caller: Caller) -> bool:
            chosen = ACTS[caller.random.integers(len(ACTS))]
            codes = chosen.do(caller)
            self._note(codes, chosen.surprises(codes))
            return time.monotonic() < ends_s

        self._let(f"{name}: {seconds:.0f} s", num_clients, act)

    def _let(self, name: str, num_clients: int, work: Callable[[Caller], bool]) -> None:
        """Let clients work until each has no more to do."""
        print(f"    {name}", flush=True)

        def keep_working(number: int, stopping: threading.Event) -> None:
            caller = Caller(self._server.target, number)
            try:
                while not stopping.is_set() and work(caller):
                    pass
            finally:
                caller.close()

        with Crowd(num_clients, keep_working) as crowd:
            crowd.wait(float("inf"), report=self._report)

    def _rest(self, name: str) -> None:
        """Wait until the server has nothing to do, and look at it."""
        deadline_s = time.monotonic() + _REST_S
        while not self._is_resting():
            if time.monotonic() > deadline_s:
                usage = self._server.usage()
                raise ProgramFailed(f"the server is not idle {_REST_S:.0f} s after its clients are gone: {usage}")
            time.sleep(_POLL_S)
        self._usages[name] = self._server.usage()
        print(f"    {name}: {self._usages[name]}", flush=True)

    def _is_resting(self) -> bool:
        server, start = self._server, self._usages.get("start")
        if server.metric("mixer_requests_in_flight") or server.metric("mixer_streams_open"):
            return False
        return start is None or server.usage().num_descriptors <= start.num_descriptors

    def _note(self, codes: Counter[str], surprises: Counter[str]) -> None:
        with self._lock:
            self._codes += codes
            self._surprises += surprises

    def _report(self, passed_s: float) -> None:
        print(
            f"    {passed_s:5.0f} s  {self._codes.total():,} statuses; {self._server.usage()}",
            flush=True,
        )


def _growth(before: Usage, after: Usage) -> float:
    return round(100 * (after.own_mib / before.own_mib - 1), 3)


def _at_most(figure: str, value: float, limit: float, unit: str = "") -> Check:
    return Check(figure=figure, value=value, bound="at most", limit=limit, unit=unit)
