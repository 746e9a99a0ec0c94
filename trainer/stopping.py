"""Ending a run between two steps, on all ranks behind the same one."""

import signal
from typing import Any

import torch
import torch.distributed as dist

from services.cli import ProgramStopped
from services.signals import StopRequest
from trainer.world import World


class Stopped(ProgramStopped):
    """Somebody asked the run to stop, and its state was saved."""

    def __init__(self, number: int, epoch: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step} of epoch {epoch + 1}; go on with --resume auto", number)


class StopVote:
    """Lets ranks agree to stop: a signal reaches them at different steps, and one that stopped alone would leave the
    others hanging in their all-reduce.

    Each answer was exchanged while the step before it ran, so nobody waits for it; ranks stop one step late.
    """

    def __init__(self, request: StopRequest, world: World) -> None:
        self._request = request
        self._world = world
        self._under_way: tuple[torch.Tensor, Any] | None = None

    def ask(self) -> int:
        """Tell which signal all ranks stop for now, 0 for none; every rank asks after every step.

        Raises:
            RuntimeError: if another rank is gone.
        """
        mine = self._request.signal or 0
        if self._world.size == 1:
            return mine
        agreed = self._answer()
        number = torch.tensor(mine)
        self._under_way = number, dist.all_reduce(number, dist.ReduceOp.MAX, self._world.control, async_op=True)
        return agreed

    def _answer(self) -> int:
        if self._under_way is None:
            return 0
        number, exchange = self._under_way
        exchange.wait()
        return int(number.item())
