"""How a mixer is co-trained, and what one step of it draws."""

from dataclasses import dataclass

import torch

from samix.errors import ConfigError
from samix.mixing.batch import MixPlan
from samix.mixing.plan import SAMIX_ALPHA, check_alpha, draw_plan
from samix.mixing.schedules import MaskSchedule


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """How the mixer learns; the defaults are the papers'."""

    alpha: float = SAMIX_ALPHA
    """Both parameters of the Beta distribution of lam."""
    per_sample_lam: bool = True
    """Draw one lam for each image. One for the whole batch is cancelled by the batch norm of a non-linear content."""
    no_fixed_points: bool = False
    """Never pair an image with itself; the published choice for small batches (CUB, Aircraft)."""
    pairwise: bool = True
    """Judge mixes between the two classes of a pair alone, beside eta times all classes: SAMix's eta-balanced loss.
    False leaves the second term, which AutoMix has with eta = 1. Mode `paper` alone uses it."""
    eta: float = 0.5
    """Weight of the global term of the mixer's loss: 0.5 on small data, 0.1 on ImageNet. Mode `paper` alone uses it."""
    mask_weight: float = 0.1
    """Weight of the mask loss at the first step (beta)."""
    mask_schedule: MaskSchedule = "linear"
    """`linear` falls to 0 at the last step, as the papers have it; `compounding` is what the public reference's hook
    does on ImageNet and CUB: gone after a fiftieth of the run."""
    mask_margin: float = 0.1
    """Distance between a mask's mean and lam that costs nothing (epsilon)."""
    mask_variance: bool = True
    """Reward the variance of masks, which SAMix does and AutoMix does not."""
    mask_adjust: float = 0.0
    """Probability with which the classifier's masks are rescaled so that their mean is lam."""
    momentum: float = 0.999
    """Of the momentum copy, until it rises. Short runs need 0.99, or the copy stays near its random start."""
    momentum_end: float = 0.999999
    """Of the momentum copy, at the last step."""
    momentum_constant_share: float = 0.1
    """Share of the run before it rises; 0.25 for vision transformers."""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if not 0 <= self.momentum <= self.momentum_end <= 1:
            raise ConfigError(
                f"momentum must satisfy 0 <= momentum <= momentum_end <= 1, got {self.momentum} and {self.momentum_end}"
            )
        for name in ("mask_adjust", "momentum_constant_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not (0 <= self.eta <= 1e6 and 0 <= self.mask_weight <= 1e6 and 0 <= self.mask_margin <= 1):
            raise ConfigError(
                "eta and mask_weight must not be negative and mask_margin must lie in [0, 1], got "
                f"{self.eta}, {self.mask_weight} and {self.mask_margin}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlans:
    """What one step mixes: twice, with lambdas and partners of their own."""

    mixers: MixPlan
    """Of the batch the mixer learns from."""
    students: MixPlan
    """Of the batch the classifier learns from."""
    adjusts: bool
    """Whether the classifier's masks are rescaled to their lam this time."""

    def to(self, device: torch.device) -> "StepPlans":
        """Move both plans to `device`."""
        return StepPlans(mixers=self.mixers.to(device), students=self.students.to(device), adjusts=self.adjusts)


def draw_step_plans(batch_size: int, config: OnlineConfig, generator: torch.Generator) -> StepPlans:
    """Draw both plans of one step."""
    mixers, students = (
        draw_plan(
            batch_size,
            alpha=config.alpha,
            generator=generator,
            per_sample=config.per_sample_lam,
            no_fixed_points=config.no_fixed_points,
        )
        for _ in range(2)
    )
    adjusts = torch.rand((), generator=generator).item() < config.mask_adjust
    return StepPlans(mixers=mixers, students=students, adjusts=adjusts)
