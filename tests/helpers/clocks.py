"""Time for tests that wait for nothing."""

from dataclasses import dataclass


@dataclass
class Clock:
    """Time that moves when it is told to."""

    now_s: float = 0.0
    """What it says, seconds."""

    def __call__(self) -> float:
        return self.now_s
