"""What requests of the Open Inference Protocol have cost, mixer by mixer."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from samix.inference.v2 import inference_pb2 as pb
from samix.mixing.frozen import FrozenMixer

_RECENT_PASSES = 64  # requests of one pass are counted within far fewer passes of each other


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """What one answered request spent its time on, in seconds."""

    whole_s: float
    """From its message to its answer."""
    input_s: float
    """Reading it, and decoding pictures."""
    queue_s: float
    """Waiting for a pass."""
    pass_s: float
    """In the pass."""
    output_s: float
    """Writing the answer."""


@dataclass(kw_only=True, slots=True)
class _Tally:
    """Of one version of a mixer."""

    stats: pb.ModelStatistics
    passes: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_PASSES))
    """When those began that were counted last."""


class Statistics:
    """Counts. Safe for threads; knows a mixer from when it is loaded to when it is let go."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Count from nothing; `clock` tells seconds since 1970."""
        self._clock = clock
        self._lock = threading.Lock()
        self._tallies: WeakKeyDictionary[FrozenMixer, _Tally] = WeakKeyDictionary()

    def count_answer(self, mixer: FrozenMixer, num_images: int, times: Times, pass_began_s: float) -> None:
        """Count a request that was answered.

        Args:
            mixer: answered it.
            num_images: that it had.
            times: what it cost.
            pass_began_s: when its pass began, on any clock: by this, passes are told from each other.
        """
        with self._lock:
            tally = self._tally(mixer)
            stats, spent = tally.stats, tally.stats.inference_stats
            stats.last_inference = int(1000 * self._clock())
            stats.inference_count += num_images
            if pass_began_s not in tally.passes:
                tally.passes.append(pass_began_s)
                stats.execution_count += 1
            _add(spent.success, times.whole_s)
            _add(spent.compute_input, times.input_s)
            _add(spent.queue, times.queue_s)
            _add(spent.compute_infer, times.pass_s)
            _add(spent.compute_output, times.output_s)

    def count_failure(self, mixer: FrozenMixer, whole_s: float) -> None:
        """Count a request that was refused or failed after so many seconds."""
        with self._lock:
            _add(self._tally(mixer).stats.inference_stats.fail, whole_s)

    def read(self, mixers: Sequence[FrozenMixer]) -> pb.ModelStatisticsResponse:
        """Tell what these mixers have done."""
        with self._lock:
            return pb.ModelStatisticsResponse(model_stats=[self._tally(mixer).stats for mixer in mixers])

    def _tally(self, mixer: FrozenMixer) -> _Tally:
        tally = self._tallies.get(mixer)
        if tally is None:
            tally = _Tally(stats=pb.ModelStatistics(name=mixer.name, version=mixer.version))
            self._tallies[mixer] = tally
        return tally


def _add(duration: pb.StatisticDuration, seconds: float) -> None:
    duration.count += 1
    duration.ns += round(1e9 * max(seconds, 0))
