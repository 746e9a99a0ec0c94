"""Carries IP packets between tun devices, late and with losses: what netem does, for kernels without it.

A program of its own, so that nothing else holds its interpreter's lock: `python -m benchmarks.wan_relay`, with open
devices as descriptors. It ends with SIGTERM, and says what it carried.
"""

import argparse
import ipaddress
import os
import random
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_MAX_PACKET = 65_535
_AT_ONCE = 64
"""Packets of one device before the others are looked at."""
_IDLE_S = 0.2
_MAX_WAITING = 100_000


@dataclass(slots=True)
class Carried:
    """What a relay did."""

    packets: int = 0
    """That were delivered."""
    lost: int = 0
    """That were dropped by chance, as they should be."""
    crowded: int = 0
    """That were dropped because relay or device were full, which spoils the figures."""
    latest_s: float = 0.0
    """Longest that one was delivered after it was due, seconds."""


class Relay:
    """Reads packets, keeps them for a while, and hands them to the device of their destination.

    Args:
        devices: descriptor of a tun device that does not block, by the IPv4 address it belongs to.
        delay_s: how long each packet is kept, seconds.
        loss: share of the packets that are dropped, in [0, 1).
        rng: decides which.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        devices: Mapping[bytes, int],
        *,
        delay_s: float,
        loss: float,
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.carried = Carried()
        """So far."""
        self._devices = dict(devices)
        self._delay_s = delay_s
        self._loss = loss
        self._rng = rng
        self._clock = clock
        self._waiting: deque[tuple[float, int, bytes]] = deque()  # in the order they are due: all wait equally long

    def run(self, is_over: Callable[[], bool]) -> None:
        """Carry packets until somebody says that it is over."""
        while not is_over():
            timeout_s = min(_IDLE_S, max(0.0, self._waiting[0][0] - self._clock())) if self._waiting else _IDLE_S
            ready, _, _ = select.select(self._devices.values(), [], [], timeout_s)
            for descriptor in ready:
                self._take(descriptor)
            self._deliver()

    def _take(self, descriptor: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(descriptor, _MAX_PACKET)
            except BlockingIOError:
                return
            target = self._devices.get(packet[16:20]) if packet[0] >> 4 == 4 else None
            if target is None:
                continue  # for everybody, or of IPv6: chatter of the kernel
            if self._rng.random() < self._loss:
                self.carried.lost += 1
            elif len(self._waiting) >= _MAX_WAITING:
                self.carried.crowded += 1
            else:
                self._waiting.append((self._clock() + self._delay_s, target, packet))

    def _deliver(self) -> None:
        now_s = self._clock()
        while self._waiting and self._waiting[0][0] <= now_s:
            due_s, target, packet = self._waiting.popleft()
            try:
                os.write(target, packet)
            except BlockingIOError:
                self.carried.crowded += 1
                continue
            self.carried.packets += 1
            self.carried.latest_s = max(self.carried.latest_s, now_s - due_s)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m benchmarks.wan_relay --delay-s S --loss SHARE --seed N ADDRESS=DESCRIPTOR...`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay-s", type=float, required=True)
    parser.add_argument("--loss", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("devices", nargs="+")
    args = parser.parse_args(argv)
    pairs = (device.split("=") for device in args.devices)
    devices = {ipaddress.IPv4Address(address).packed: int(descriptor) for address, descriptor in pairs}
    relay = Relay(devices, delay_s=args.delay_s, loss=args.loss, rng=random.Random(args.seed))
    ends: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ends.append(number))
    print("ready", flush=True)
    relay.run(lambda: bool(ends))
    carried = relay.carried
    print(f"{carried.packets} {carried.lost} {carried.crowded} {carried.latest_s}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
