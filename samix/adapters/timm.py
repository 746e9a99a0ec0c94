"""Learned mixing for loops written for `timm.data.Mixup`: only the line of the constructor differs.

    mixup_fn = Mixup(load_mixer("mixer.safetensors"), num_classes=1000, label_smoothing=0.1, seed=0)

What changes: `x` is not overwritten but returned anew, a batch may be odd, and the draws come from `seed`.
"""

from collections.abc import Sequence

from torch import Tensor

from samix.adapters.soft_mixing import SoftMixing
from samix.mixing.presets import IMAGENET_MEAN, IMAGENET_STD
from samix.mixing.protocol import Mixer


class Mixup(SoftMixing):
    """Called as timm's: `x, target = mixup_fn(x, target)`, on any device.

    It has no `cutmix_alpha`, `cutmix_minmax`, `switch_prob`, `mode` or `correct_lam`: the mixer decides what is cut.
    """

    def __init__(
        self,
        mixer: Mixer,
        *,
        mixup_alpha: float | None = None,
        prob: float = 1.0,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        seed: int,
        rank: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        normalised: bool = True,
        clamp: bool = False,
    ) -> None:
        """Choose how to mix.

        Args:
            mixer: of `load_mixer` or `connect`.
            mixup_alpha: both parameters of the Beta distribution of lam; None leaves it to the mixer, which is 2
                for learned ones.
            prob: share of the batches that are mixed.
            label_smoothing: share of each target that is spread evenly over all classes.
            num_classes: width of the targets.
            seed: where all draws come from; the same on all ranks.
            rank: number of this process in a distributed run; timm's `args.rank`.
            mean: what the loader subtracted, by channel; timm's `data_config["mean"]`.
            std: what it divided by.
            normalised: False where the images are uint8 or in [0, 1]; `mean` and `std` are then without effect.
            clamp: take pixels that no picture has, such as the noise of RandomErasing, for the nearest that one has.

        Raises:
            ConfigError: if a number is out of bounds.
        """
        super().__init__(
            mixer,
            num_classes=num_classes,
            seed=seed,
            rank=rank,
            prob=prob,
            label_smoothing=label_smoothing,
            alpha=mixup_alpha,
            mean=mean if normalised else None,
            std=std if normalised else None,
            clamp=clamp,
        )

    @property
    def mixup_enabled(self) -> bool:
        """Whether batches are mixed; timm's training script sets it to False for the last epochs."""
        return self.enabled

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self.enabled = enabled

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images [B, 3, H, W] and labels int64 [B] into images and targets float32 [B, K]; see `SoftMixing.mix`."""
        return self.mix(x, target)
