"""Two real servers under load, one or the other killed: what their clients notice."""

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.endurance_kills import Ledger, make_batch
from benchmarks.endurance_servers import Replica, artefact_of
from samix.client.config import ClientConfig
from samix.client.remote import connect
from samix.errors import MixerUnavailable
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.presets import tiny_spec

WAIT_S = 60.0


@pytest.fixture(scope="module")
def small() -> FrozenMixer:
    return random_mixer(tiny_spec(), seed=0, name="tiny")


@pytest.fixture
def replicas(small: FrozenMixer, tmp_path: Path) -> Iterator[list[Replica]]:
    with ExitStack() as opened:
        artefact = opened.enter_context(artefact_of(small))
        started = [Replica(artefact, None, tmp_path / f"{name}.log") for name in "ab"]
        for replica in started:
            opened.callback(replica.close)
            replica.start()
        yield started


class Client:
    """Streams numbered batches on a thread of its own, four under way, until it is told to stop."""

    def __init__(self, replicas: list[Replica], ledger: Ledger) -> None:
        self._target = ",".join(replica.target for replica in replicas)
        self._ledger = ledger
        self._stopping = threading.Event()
        self._answered = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_for(self, num_batches: int) -> None:
        """Wait until so many more are answered."""
        with self._answered:
            least = self._ledger.num_answered + num_batches
            assert self._answered.wait_for(lambda: self._ledger.num_answered >= least, WAIT_S)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        settings = ClientConfig(deadline_s=WAIT_S / 2)
        with connect(self._target, reply="images", config=settings, observer=self._ledger.observer) as mixer:
            pending: deque = deque()
            for number in itertools.count():
                if not self._stopping.is_set():
                    key = number.to_bytes(4)
                    images, plan = make_batch(key)
                    self._ledger.asked(key)
                    pending.append((images, plan, mixer.submit(images, plan=plan)))
                if len(pending) == 4 or self._stopping.is_set():
                    if not pending:
                        return
                    images, plan, mix = pending.popleft()
                    self._ledger.answered(images, plan, mix.result())
                    with self._answered:
                        self._answered.notify_all()


@pytest.mark.slow
def test_no_batch_is_lost_when_replicas_are_killed(small: FrozenMixer, replicas: list[Replica]):
    """With kill -9 and restart of one replica, then the other, every batch is answered once, with its own masks."""
    ledger = Ledger(small)
    client = Client(replicas, ledger)
    try:
        for replica in replicas:
            client.wait_for(50)
            replica.kill()
            client.wait_for(50)
            replica.start()
        client.wait_for(50)
    finally:
        client.stop()

    assert [str(check) for check in ledger.checks() if not check.is_met] == []
    assert ledger.num_answered > 250


@pytest.mark.slow
def test_killed_replica_comes_back_at_its_address(replicas: list[Replica]):
    """While a replica is gone its callers hear UNAVAILABLE; when it is back it answers at the same address."""
    first = replicas[0]
    target, settings = first.target, ClientConfig(deadline_s=5.0)
    images, plan = make_batch(b"once")

    first.kill()
    with connect(target, config=settings) as mixer, pytest.raises(MixerUnavailable):
        mixer.submit(images, plan=plan).result()
    first.start()
    with connect(target, config=settings) as mixer:
        mixed = mixer.submit(images, plan=plan).result()

    assert first.target == target
    assert mixed.images.shape == images.shape
