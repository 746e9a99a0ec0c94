"""Hand-crafted policies behind the `Mixer` protocol, each from its paper, with the published settings as defaults.

All of them draw from the caller's seed alone and work on any device. Where a policy shows another share than lam asked
for, the lam of the mix is the share that it shows.
"""

from typing import Literal, get_args

from samix.errors import ConfigError
from samix.mixing.policies.base import HandCraftedMixer
from samix.mixing.policies.cutmix import cutmix
from samix.mixing.policies.fmix import fmix
from samix.mixing.policies.mixup import mixup, no_mixing
from samix.mixing.policies.puzzlemix import PuzzleSettings, puzzlemix
from samix.mixing.policies.resizemix import resizemix
from samix.mixing.policies.saliency import Saliency, fine_grained_saliency, gradient_saliency
from samix.mixing.policies.saliencymix import saliencymix

PolicyName = Literal["none", "mixup", "cutmix", "saliencymix", "fmix", "resizemix", "puzzlemix"]

_SALIENT = {"saliencymix": saliencymix, "puzzlemix": puzzlemix}
_BLIND = {"mixup": mixup, "cutmix": cutmix, "fmix": fmix, "resizemix": resizemix}

__all__ = [
    "HandCraftedMixer",
    "PolicyName",
    "PuzzleSettings",
    "Saliency",
    "cutmix",
    "fine_grained_saliency",
    "fmix",
    "gradient_saliency",
    "hand_crafted",
    "mixup",
    "no_mixing",
    "puzzlemix",
    "resizemix",
    "saliencymix",
    "usual_alpha",
]


def hand_crafted(name: PolicyName, alpha: float | None = None, *, saliency: Saliency | None = None) -> HandCraftedMixer:
    """Make a policy by its name.

    Args:
        name: which one.
        alpha: both parameters of the Beta distribution of lam; None is `usual_alpha`. Without effect on `none`.
        saliency: for `saliencymix` and `puzzlemix`; None is the static fine-grained saliency.

    Raises:
        ConfigError: if there is no such policy, alpha is out of bounds, the policy takes no saliency, or its package is
            not installed.
    """
    usual = usual_alpha(name)
    used_alpha = usual if alpha is None else alpha
    if name in _SALIENT:
        return _SALIENT[name](used_alpha, saliency=saliency)
    if saliency is not None:
        raise ConfigError(f"policy {name!r} uses no saliency; leave it out, or take {' or '.join(_SALIENT)}")
    return _BLIND[name](used_alpha) if name in _BLIND else no_mixing()


def usual_alpha(name: PolicyName) -> float:
    """Tell the alpha of a policy's own paper: 1 for each of them on CIFAR.

    Published comparisons take 0.2 for CutMix, SaliencyMix and FMix on CIFAR, and 0.2 for Mixup on ImageNet.

    Raises:
        ConfigError: if there is no such policy.
    """
    if name not in get_args(PolicyName):
        raise ConfigError(f"there is no policy {name!r}; take one of {', '.join(get_args(PolicyName))}")
    return 1.0
