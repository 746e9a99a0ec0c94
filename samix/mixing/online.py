"""One co-training step of SAMix: the mixer learns from a momentum copy of the classifier that it mixes for.

    images --> momentum encoder (no gradient) --> features
    features --> mixing block, plan 1 --> masks --> mixed images --> momentum classifier --> eta-balanced loss --> block
    features --> mixing block, plan 2 --> masks (no gradient) --> mixed images --> the classifier being trained

The momentum copy runs in evaluation mode and follows parameters and batch-norm statistics alike, so that the mixer is
trained with exactly the encoder it is shipped with.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from samix.errors import ConfigError
from samix.mixing.backbone import build_backbone
from samix.mixing.batch import MixedBatch, MixPlan, as_unit_float
from samix.mixing.block import MixingBlock
from samix.mixing.checksum import mixer_checksum
from samix.mixing.encoder import Normalise, feature_index, num_feature_channels, stage_features
from samix.mixing.frozen import FrozenMixer, MaskNet, freeze
from samix.mixing.losses import eta_balanced_loss, mask_loss
from samix.mixing.plan import SAMIX_ALPHA
from samix.mixing.render import Rendering, blend, compose, render_masks
from samix.mixing.spec import MixerSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineConfig:
    """How the mixer is co-trained."""

    alpha: float = SAMIX_ALPHA
    """Both parameters of the Beta distribution of lam."""
    eta: float = 0.5
    """Weight of the global term of the loss: 0.5 on small data, 0.1 on ImageNet."""
    mask_weight: float = 0.1
    """Weight of the mask loss at the first step; falls linearly to 0 at the last."""
    mask_margin: float = 0.1
    """Distance between a mask's mean and lam that costs nothing."""
    momentum: float = 0.999
    """Of the momentum copy, until it rises. Short runs need 0.99, or the copy stays near its random start."""
    momentum_end: float = 0.999999
    """Of the momentum copy, at the last step."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= self.momentum_end <= 1:
            raise ConfigError(
                f"momentum must satisfy 0 <= momentum <= momentum_end <= 1, got {self.momentum} and {self.momentum_end}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerLoss:
    """What one step of the mixer cost, and how its masks look."""

    total: Tensor
    """Scalar with a gradient: classification plus weighted mask loss."""
    classification: float
    """The eta-balanced loss."""
    mask: float
    """The mask loss, before its weight."""
    lam_error: float
    """Mean of |mean(mask) - lam|; 0 is perfect."""
    spread: float
    """Mean spatial standard deviation of the masks; below 0.02 they are trivial, a constant blend."""


class OnlineMixer(nn.Module):
    """A mixer in training: momentum classifier and mixing block."""

    def __init__(self, spec: MixerSpec, config: OnlineConfig, classifier: nn.Module, block: MixingBlock) -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        self.normalise = Normalise(spec.mean, spec.std)
        self.classifier = classifier
        self.block = block
        self._index = feature_index(classifier, spec.stage)
        self._unmargined = Rendering(upsampling=spec.rendering.upsampling, lam_margin=0.0)

    @classmethod
    def build(cls, spec: MixerSpec, config: OnlineConfig, student: nn.Module, num_classes: int) -> "OnlineMixer":
        """Start from a copy of the classifier that will be trained, and a random block.

        Args:
            spec: settings of the mixer; its backbone is that of `student`.
            config: how to co-train.
            student: the classifier, from `build_backbone`.
            num_classes: K.
        """
        classifier = build_backbone(spec.backbone, num_classes)
        classifier.load_state_dict(student.state_dict())
        block = MixingBlock(spec.block, num_feature_channels(student, spec.stage))
        mixer = cls(spec, config, classifier.requires_grad_(False), block)
        return mixer.train()

    def train(self, mode: bool = True) -> "OnlineMixer":
        """Switch the block; the momentum copy always evaluates."""
        super().train(mode)
        self.classifier.eval()
        return self

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Encode a clean batch, uint8 or [0, 1], up to the stage and no further: [B, C, h, w]."""
        return stage_features(self.classifier, self.normalise(as_unit_float(images)), self._index)

    def loss(self, images: Tensor, labels: Tensor, features: Tensor, plan: MixPlan, progress: float) -> MixerLoss:
        """Evaluate the mixer's objective; gradients reach the mixing block alone.

        Args:
            images: [B, 3, H, W] the clean batch.
            labels: int64 [B].
            features: what `features(images)` returned.
            plan: pairs and shares of the mixer's own mix.
            progress: share of the run that is done, in [0, 1].
        """
        logits = self.block(features, plan.lam, plan.partner)
        masks = render_masks(logits, plan.lam, (images.shape[2], images.shape[3]), self._unmargined)
        mixed = blend(as_unit_float(images), plan.partner, masks)
        scores = self.classifier(self.normalise(mixed))
        classification = eta_balanced_loss(scores, labels, labels[plan.partner], plan.lam, self.config.eta)
        shape = mask_loss(masks, plan.lam, self.config.mask_margin)
        pixels = masks.detach().flatten(1)
        return MixerLoss(
            total=classification + self.config.mask_weight * (1 - progress) * shape,
            classification=classification.item(),
            mask=shape.item(),
            lam_error=(pixels.mean(dim=1) - plan.lam).abs().mean().item(),
            spread=pixels.std(dim=1).mean().item(),
        )

    @torch.no_grad()
    def mix(self, images: Tensor, labels: Tensor, features: Tensor, plan: MixPlan) -> MixedBatch:
        """Mix a batch for the classifier, with the mixer as it is now and no gradient."""
        return compose(images, labels, plan, self.block(features, plan.lam, plan.partner), self.spec.rendering)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """Move the momentum copy towards the student: m * copy + (1 - m) * student, batch-norm statistics included."""
        originals = student.state_dict()
        pairs = [
            (copy, originals[key]) for key, copy in self.classifier.state_dict().items() if copy.is_floating_point()
        ]
        copies, targets = (list(side) for side in zip(*pairs, strict=True))
        get_ema_multi_avg_fn(momentum)(copies, targets, 0)

    def momentum_at(self, progress: float) -> float:
        """Return the momentum: constant for the first tenth, then rising with a cosine to its end."""
        start, end = self.config.momentum, self.config.momentum_end
        if progress < 0.1:
            return start
        return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2

    @torch.no_grad()
    def freeze(self, name: str, device: str = "cpu") -> FrozenMixer:
        """Cut out what is shipped: the encoder up to its stage, and the block, in evaluation mode."""
        net = MaskNet.build(self.spec)
        trained = self.classifier.state_dict()
        backbone = net.encoder.backbone
        backbone.load_state_dict({key: trained[key] for key in backbone.state_dict()})
        net.block.load_state_dict(self.block.state_dict())
        sha256 = mixer_checksum(self.spec.to_json(), net.state_dict())
        return freeze(net, self.spec, name=name, sha256=sha256, device=device)
