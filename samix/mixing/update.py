"""What happens to weights at a step: gradients scaled, gathered and clipped, every optimiser stepped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from samix.mixing.optimise import OptimiserConfig, RunLength, build_optimiser, rate_at


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters with an optimiser of their own."""

    config: OptimiserConfig
    optimiser: torch.optim.Optimizer
    length: RunLength

    def set_rate(self, step: int) -> None:
        """Take the learning rate of a step."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.config, self.length, step)

    def clip(self) -> None:
        """Shorten the gradient where it is too long."""
        if self.config.clip_norm:
            parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)


class Update:
    """Groups of parameters that step together. The first is the classifier's."""

    def __init__(self, groups: Sequence[Group], scaler: GradScaler) -> None:
        self._groups = groups
        self._scaler = scaler
        self._steps_done = 0

    @classmethod
    def of(
        cls,
        modules: Iterable[tuple[OptimiserConfig, nn.Module]],
        length: RunLength,
        *,
        device: str = "cpu",
        scales_loss: bool = False,
    ) -> Self:
        """Make an optimiser for each module.

        Args:
            modules: which share no parameter.
            length: of the run.
            device: kind of the device they are on.
            scales_loss: keep small gradients of float16 above its smallest number; steps whose gradients overflow are
                left out, and the scale is halved.
        """
        groups = [Group(config, build_optimiser(config, module), length) for config, module in modules]
        return cls(groups, GradScaler(device, enabled=scales_loss))

    @property
    def lr(self) -> float:
        """Learning rate of the classifier at the next step."""
        return rate_at(self._groups[0].config, self._groups[0].length, self._steps_done)

    @property
    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Those of the groups, in their order."""
        return [group.optimiser for group in self._groups]

    def stand_at(self, step: int) -> None:
        """Take the learning rates of this step at the next one; for whoever leaves steps out."""
        self._steps_done = step

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to what was gathered since the last step."""
        self._scaler.scale(loss).backward()

    def step(self) -> None:
        """Step everything by the gathered gradients, and forget them."""
        for group in self._groups:
            group.set_rate(self._steps_done)
            self._scaler.unscale_(group.optimiser)
            group.clip()
            self._scaler.step(group.optimiser)
            group.optimiser.zero_grad(set_to_none=True)
        self._scaler.update()
        self._steps_done += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes up again."""
        return {
            "kinds": self._kinds(),
            "optimisers": [group.optimiser.state_dict() for group in self._groups],
            "steps_done": self._steps_done,
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of an earlier run.

        Raises:
            ValueError: if it has other optimisers or parameters, or scaled its loss when this one does not.
        """
        if state["kinds"] != self._kinds():  # torch would take it, and fail at the first step
            raise ValueError(f"it was trained with {' and '.join(state['kinds'])}, not {' and '.join(self._kinds())}")
        if bool(state["scaler"]) != self._scaler.is_enabled():
            raise ValueError("one of the two trains in fp16 and the other does not")
        for group, theirs in zip(self._groups, state["optimisers"], strict=True):
            group.optimiser.load_state_dict(theirs)
        self._steps_done = state["steps_done"]
        self._scaler.load_state_dict(state["scaler"])

    def _kinds(self) -> list[str]:
        return [type(group.optimiser).__name__ for group in self._groups]
