"""Calls spread over the replicas of a mixer by turns; one that fails is left out until it answers again.

A replica that is out costs no mix anything: whether it is back is asked by small calls of its own. While all are out,
they are called by turns like before, so that one that is alone is called always.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from samix.client.attempts import Attempt
from samix.client.channel import Connection
from samix.client.unary import Method
from samix.errors import MixerCancelled, MixerError, MixerTimeout, MixerUnavailable
from samix.framing import Framed
from samix.mixer.v1 import mixer_pb2 as pb

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
PROBE_TIMEOUT_S = 2.0

_LOST = (MixerUnavailable, MixerTimeout)


@dataclass(kw_only=True, slots=True, eq=False)
class Replica:
    """One server, as far as it is known."""

    connection: Connection
    """To it."""
    is_up: bool = True
    """Whether it gets work while others could."""
    is_probed: bool = False
    """Whether it is being asked whether it is back."""
    pause_s: float = FIRST_PAUSE_S
    """Before it is asked whether it is back, seconds."""
    probe_at_s: float = 0.0
    """When it is asked next, by the clock of the replicas."""


class Replicas:
    """Connections to servers of the same mixer. Safe for threads; pickles as fresh connections."""

    def __init__(self, connections: Sequence[Connection], clock: Callable[[], float] = time.monotonic) -> None:
        self._replicas = [Replica(connection=connection) for connection in connections]
        self._clock = clock
        self._lock = threading.Lock()
        # Ranks that start together begin at different replicas. SystemRandom leaves the seeded generators alone.
        self._turn = random.SystemRandom().randrange(len(connections))

    def __reduce__(self) -> tuple:
        return Replicas, ([replica.connection for replica in self._replicas],)

    @property
    def target(self) -> str:
        """All addresses, for messages."""
        return ",".join(replica.connection.target for replica in self._replicas)

    @property
    def has_several(self) -> bool:
        """Whether there is more than one."""
        return len(self._replicas) > 1

    def check_process(self) -> None:
        """Refuse to be used by a fork of the process that opened a channel.

        Raises:
            InputError: if this process is one.
        """
        for replica in self._replicas:
            replica.connection.check_process()

    def start(self, method: Method, request: Framed, timeout_s: float) -> tuple[Replica, Attempt]:
        """Send `request` to the replica whose turn it is; see `Connection.start`.

        Where others could take over it gets half of the time only.
        """
        self.check_process()  # before the lock, which the parent may have held at the fork
        if not self.has_several:
            return self._replicas[0], self._replicas[0].connection.start(method, request, timeout_s)
        self._probe()
        replica, has_other = self._next()
        # One that hangs is left while there is time for another.
        return replica, self._send(replica, method, request, timeout_s / 2 if has_other else timeout_s)

    def start_elsewhere(self, asked: Replica, method: Method, request: Framed, timeout_s: float) -> Attempt | None:
        """Send `request` also to a replica that is up and was not `asked` before; None where there is none."""
        with self._lock:
            others = [replica for replica in self._replicas if replica.is_up and replica is not asked]
            turn = self._turn
        return self._send(others[turn % len(others)], method, request, timeout_s) if others else None

    def choose(self) -> Replica:
        """Return the replica whose turn it is, for a call of another service; `note` wants to hear what came of it."""
        self.check_process()  # before the lock, which the parent may have held at the fork
        if not self.has_several:
            return self._replicas[0]
        self._probe()
        return self._next()[0]

    def note(self, replica: Replica, error: MixerError | None) -> None:
        """Hear that a replica answered, or how it did not."""
        if isinstance(error, _LOST):
            self._set_down(replica, error)
        elif not isinstance(error, MixerCancelled):  # mostly by us, so it tells nothing
            self._set_up(replica)

    def close(self) -> None:
        """End all connections; calls under way end as cancelled."""
        for replica in self._replicas:
            replica.connection.close()

    def _send(self, replica: Replica, method: Method, request: Framed, timeout_s: float) -> Attempt:
        attempt = replica.connection.start(method, request, timeout_s)
        attempt.add_done_callback(partial(self._note, replica))
        return attempt

    def _next(self) -> tuple[Replica, bool]:
        """Choose the replica whose turn it is; also say whether others were possible."""
        with self._lock:
            candidates = [replica for replica in self._replicas if replica.is_up] or self._replicas
            self._turn += 1
            return candidates[self._turn % len(candidates)], len(candidates) > 1

    def _note(self, replica: Replica, attempt: Attempt) -> None:
        outcome = attempt.outcome
        self.note(replica, outcome if isinstance(outcome, MixerError) else None)

    def _set_down(self, replica: Replica, error: MixerError) -> None:
        with self._lock:
            was_up, replica.is_up = replica.is_up, False
            if was_up:
                replica.pause_s = FIRST_PAUSE_S
                replica.probe_at_s = self._clock() + replica.pause_s
        if was_up:
            log.warning("mixer_replica_down target=%s reason=%s", replica.connection.target, error)

    def _set_up(self, replica: Replica) -> None:
        with self._lock:
            was_up, replica.is_up = replica.is_up, True
        if not was_up:
            log.info("mixer_replica_up target=%s", replica.connection.target)

    def _probe(self) -> None:
        """Ask the replicas that are out, and have been for long enough, whether they are back."""
        with self._lock:
            now_s = self._clock()
            due = [r for r in self._replicas if not r.is_up and not r.is_probed and r.probe_at_s <= now_s]
            for replica in due:
                replica.is_probed = True
        for replica in due:
            with suppress(MixerCancelled):  # closed meanwhile; the caller hears it from its own call
                probe = replica.connection.start("GetMixer", Framed(pb.GetMixerRequest()), PROBE_TIMEOUT_S)
                probe.add_done_callback(partial(self._note_probe, replica))

    def _note_probe(self, replica: Replica, probe: Attempt) -> None:
        self._note(replica, probe)
        with self._lock:
            replica.is_probed = False
            replica.pause_s = min(2 * replica.pause_s, LONGEST_PAUSE_S)
            replica.probe_at_s = self._clock() + replica.pause_s


class Route:
    """One request on its way, which knows whom it asked; one thread at a time."""

    def __init__(self, replicas: Replicas, method: Method, request: Framed) -> None:
        self._replicas = replicas
        self._method: Method = method
        self._request = request
        self._asked: Replica | None = None

    def start(self, timeout_s: float) -> Attempt:
        """Send the request; see `Replicas.start`."""
        self._asked, attempt = self._replicas.start(self._method, self._request, timeout_s)
        return attempt

    def start_elsewhere(self, timeout_s: float) -> Attempt | None:
        """Send it also to another replica than the one that was asked last; see `Replicas.start_elsewhere`."""
        assert self._asked is not None
        return self._replicas.start_elsewhere(self._asked, self._method, self._request, timeout_s)
