import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from mixer_server.scheduling.budget import MemoryBudget, Reservation
from samix.errors import BadBatch, MixerOverloaded

MIB = 1 << 20


def make_budget(max_bytes: int = 1024 * MIB) -> MemoryBudget:
    return MemoryBudget(max_bytes, lambda: 1.5)


def test_holds_until_released():
    """Memory is held from the reservation to the end of its block, also if the block fails."""
    budget = make_budget()

    with budget.reserve(64 * MIB) as reservation:
        held = (budget.num_bytes, reservation.num_bytes)
    with pytest.raises(MixerOverloaded), budget.reserve(64 * MIB):
        budget.reserve(1024 * MIB)

    assert held == (64 * MIB, 64 * MIB)
    assert (budget.num_bytes, reservation.num_bytes) == (0, 0)


def test_refuses_when_full():
    """What does not fit any more is refused with the values and with the seconds after which to come again."""
    budget = make_budget()
    budget.reserve(900 * MIB)

    with pytest.raises(MixerOverloaded) as caught:
        budget.reserve(192 * MIB + MIB // 2)

    assert str(caught.value) == "memory budget is full: 900 of 1024 MiB are held, no room for 192.5 MiB more"
    assert caught.value.retry_after_s == 1.5
    assert budget.num_bytes == 900 * MIB


def test_refuses_what_never_fits():
    """A request larger than the whole budget is told to be smaller, not to come again."""
    budget = make_budget()

    with pytest.raises(BadBatch, match=r"needs 1025 MiB does not fit into .* budget of 1024 MiB; send smaller batches"):
        budget.reserve(1025 * MIB)

    assert budget.num_bytes == 0


def test_refused_resize_keeps_what_was_held():
    """A reservation that cannot grow holds what it held, and can shrink still."""
    budget = make_budget(10)
    budget.reserve(4)
    reservation = budget.reserve(4)

    with pytest.raises(MixerOverloaded):
        reservation.resize(7)
    held = reservation.num_bytes
    reservation.resize(6)
    reservation.resize(1)

    assert held == 4
    assert budget.num_bytes == 5


def test_released_reservation_holds_nothing_again():
    """Growing after the release is a bug of the caller's, and must not take memory that nobody gives back."""
    budget = make_budget()
    reservation = budget.reserve(1)
    reservation.release()

    with pytest.raises(AssertionError, match="released"):
        reservation.resize(2)

    assert budget.num_bytes == 0


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("eager_threads")
def test_threads_share_it():
    """Threads that reserve and release at once never hold more than the budget, and leave it empty."""
    budget = make_budget(100)
    start = threading.Barrier(8)

    def use(size: int) -> int:
        start.wait(10)
        most = 0
        for _ in range(500):
            try:
                with budget.reserve(size) as reservation:
                    reservation.resize(size + 5)
                    most = max(most, budget.num_bytes)
            except MixerOverloaded:
                pass
        return most

    with ThreadPoolExecutor(8) as pool:
        most = max(pool.map(use, range(10, 50, 5)))

    assert most <= 100
    assert budget.num_bytes == 0


class Accounts(RuleBasedStateMachine):
    """The sum of what is reserved is exact and never exceeds the budget, whoever reserves, resizes and releases."""

    held: Bundle[Reservation] = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.budget = make_budget(100)
        self.sizes: dict[Reservation, int] = {}

    @rule(target=held, num_bytes=st.integers(0, 120))
    def reserve(self, num_bytes: int) -> Reservation:
        free = 100 - sum(self.sizes.values())
        try:
            reservation = self.budget.reserve(num_bytes)
        except (MixerOverloaded, BadBatch):
            assert num_bytes > free
            reservation = self.budget.reserve(0)
            num_bytes = 0
        self.sizes[reservation] = num_bytes
        return reservation

    @rule(reservation=held, num_bytes=st.integers(0, 120))
    def resize(self, reservation: Reservation, num_bytes: int) -> None:
        free = 100 - sum(self.sizes.values()) + self.sizes[reservation]
        try:
            reservation.resize(num_bytes)
            self.sizes[reservation] = num_bytes
        except (MixerOverloaded, BadBatch):
            assert num_bytes > free

    @rule(reservation=consumes(held), times=st.integers(1, 2))
    def release(self, reservation: Reservation, times: int) -> None:
        for _ in range(times):
            reservation.release()
        del self.sizes[reservation]

    @invariant()
    def is_exact(self) -> None:
        assert self.budget.num_bytes == sum(self.sizes.values()) <= 100
        assert all(reservation.num_bytes == size for reservation, size in self.sizes.items())


test_accounts = Accounts.TestCase
