"""One co-training step of SAMix: the mixer learns from a momentum copy of the classifier that it mixes for.

    images --> momentum encoder (no gradient) --> features
    features --> mixing block, plan 1 --> masks --> mixed images --> momentum classifier --> eta-balanced loss --> block
    features --> mixing block, plan 2 --> masks (no gradient) --> mixed images --> the classifier being trained

The momentum copy runs in evaluation mode and follows parameters and batch-norm statistics alike, so that the mixer is
trained with exactly the encoder it is shipped with. `samix.mixing.online_openmixup` has the public reference's way.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from samix.errors import ConfigError
from samix.mixing.batch import MixedBatch, MixPlan
from samix.mixing.block import MixingBlock
from samix.mixing.checksum import mixer_checksum
from samix.mixing.classifier import Classifier
from samix.mixing.encoder import feature_index, num_feature_channels, stage_features
from samix.mixing.frozen import FrozenMixer, MaskNet, freeze
from samix.mixing.losses import mixed_cross_entropy
from samix.mixing.mixer_losses import eta_balanced_loss, mask_loss
from samix.mixing.online_config import OnlineConfig, StepPlans
from samix.mixing.render import blend, upsample_masks
from samix.mixing.schedules import ema_momentum, mask_weight
from samix.mixing.spec import MixerSpec
from samix.mixing.students import compose_students


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerLoss:
    """What one step of the mixer cost, and how its masks look; all scalars, detached but for the first."""

    total: Tensor
    """With a gradient: classification plus weighted mask loss."""
    classification: Tensor
    """The eta-balanced loss."""
    mask: Tensor
    """The mask loss, before its weight."""
    lam_error: Tensor
    """Mean of |mean(mask) - lam|; 0 is perfect."""
    spread: Tensor
    """Mean spatial standard deviation of the masks; below 0.02 they are trivial, a constant blend."""


class OnlineMixer(nn.Module):
    """A mixer in training: momentum classifier and mixing block."""

    def __init__(self, spec: MixerSpec, config: OnlineConfig, classifier: Classifier, block: MixingBlock) -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        self.classifier = classifier
        self.block = block
        self._index = feature_index(classifier.backbone, spec.stage)

    @classmethod
    def build(cls, spec: MixerSpec, config: OnlineConfig, student: Classifier) -> "OnlineMixer":
        """Start from a copy of the classifier that will be trained, and a random block.

        Args:
            spec: settings of the mixer; its backbone is that of `student`.
            config: how to co-train.
            student: the classifier.

        Raises:
            ConfigError: if the two normalise images differently: the mixer would be shipped with another encoder than
                it was trained with.
        """
        for name in ("mean", "std"):
            ours, theirs = getattr(spec, name), tuple(getattr(student.normalise, name).flatten().tolist())
            if any(abs(mine - other) > 1e-6 for mine, other in zip(ours, theirs, strict=True)):
                raise ConfigError(f"the mixer's {name} is {ours}, the classifier's {theirs}; give both the same")
        block = MixingBlock(spec.block, num_feature_channels(student.backbone, spec.stage))
        return cls(spec, config, copy.deepcopy(student).requires_grad_(False), block).train()

    def train(self, mode: bool = True) -> "OnlineMixer":
        """Switch the block; the momentum copy always evaluates."""
        super().train(mode)
        self.classifier.eval()
        return self

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Encode a clean batch float [B, 3, H, W] in [0, 1] up to the stage and no further: [B, C, h, w]."""
        return stage_features(self.classifier.backbone, self.classifier.normalise(images), self._index)

    def loss(
        self, images: Tensor, labels: Tensor, features: Tensor, plan: MixPlan, *, step: int, total_steps: int
    ) -> MixerLoss:
        """Evaluate the mixer's objective; gradients reach the mixing block alone.

        Args:
            images: float32 [B, 3, H, W] in [0, 1], the clean batch.
            labels: int64 [B].
            features: what `features(images)` returned.
            plan: pairs and shares of the mixer's own mix.
            step: number of the step, from 0.
            total_steps: steps of the whole run.
        """
        masks = self._masks(images, features, plan)
        logits = self.classifier(blend(images, plan.partner, masks))
        classification = self._classification_loss(logits, labels, labels[plan.partner], plan.lam)
        shape = self._mask_loss(masks, plan.lam)
        weight = mask_weight(self.config.mask_schedule, self.config.mask_weight, step, total_steps)
        pixels = masks.detach().flatten(1)
        return MixerLoss(
            total=classification + weight * shape,
            classification=classification.detach(),
            mask=shape.detach(),
            lam_error=(pixels.mean(dim=1) - plan.lam).abs().mean(),
            spread=pixels.std(dim=1).mean(),
        )

    @torch.no_grad()
    def mix(self, images: Tensor, labels: Tensor, features: Tensor, plans: StepPlans) -> MixedBatch:
        """Mix a batch for the classifier, with the mixer as it is now and no gradient.

        Args:
            images: float32 [B, 3, H, W] in [0, 1], the clean batch.
            labels: int64 [B].
            features: what `features(images)` returned.
            plans: the students' is used.
        """
        logits = self.mask_logits(features, plans.students)
        return compose_students(images, labels, plans, logits, self.spec.rendering, mode=self.spec.mode)

    @torch.no_grad()
    def mask_logits(self, features: Tensor, plan: MixPlan) -> Tensor:
        """Predict logits [B, 1, h, w] of image i's share, with the mixer as it is now and no gradient."""
        return self.block(features, plan.lam, plan.partner)

    def follow(self, student: Classifier, *, step: int, total_steps: int) -> None:
        """Move the momentum copy towards the student: m * copy + (1 - m) * student.

        Args:
            student: the classifier, after the update of this step.
            step: number of the step, from 0.
            total_steps: steps of the whole run.
        """
        self.catch_up(student.state_dict(), steps=range(step, step + 1), total_steps=total_steps)

    @torch.no_grad()
    def catch_up(self, weights: Mapping[str, Tensor], *, steps: range, total_steps: int) -> None:
        """Move the momentum copy towards the student as it is several steps after the last time.

        What the copy keeps is the product of the momenta of those steps, as if it had followed at each of them. Only
        the students in between are replaced by the last one.

        Args:
            weights: of the classifier after the last of the steps, by the names of its state.
            steps: numbers of the steps since the copy followed before.
            total_steps: steps of the whole run.
        """
        momentum = math.prod(self._momentum(step, total_steps) for step in steps)
        copies = self._followed()
        get_ema_multi_avg_fn(momentum)([*copies.values()], [weights[name] for name in copies], 0)

    @torch.no_grad()
    def freeze(self, name: str, device: str = "cpu") -> FrozenMixer:
        """Cut out what is shipped: the encoder up to its stage, and the block, in evaluation mode."""
        net = MaskNet.build(self.spec)
        trained = self.classifier.backbone.state_dict()
        backbone = net.encoder.backbone
        backbone.load_state_dict({key: trained[key] for key in backbone.state_dict()})
        net.block.load_state_dict(self.block.state_dict())
        sha256 = mixer_checksum(self.spec.to_json(), net.state_dict())
        return freeze(net, self.spec, name=name, sha256=sha256, device=device)

    def _masks(self, images: Tensor, features: Tensor, plan: MixPlan) -> Tensor:
        logits = self.block(features, plan.lam, plan.partner)
        return upsample_masks(logits, (images.shape[2], images.shape[3]), self.spec.rendering.upsampling)

    def _classification_loss(self, logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: Tensor) -> Tensor:
        if self.config.pairwise:
            return eta_balanced_loss(logits, labels_a, labels_b, lam, self.config.eta)
        return self.config.eta * mixed_cross_entropy(logits, labels_a, labels_b, lam)

    def _mask_loss(self, masks: Tensor, lam: Tensor) -> Tensor:
        return mask_loss(masks, lam, self.config.mask_margin, variance=self.config.mask_variance)

    def _momentum(self, step: int, total_steps: int) -> float:
        config = self.config
        return ema_momentum(
            step,
            total_steps,
            start=config.momentum,
            end=config.momentum_end,
            constant_share=config.momentum_constant_share,
        )

    def _followed(self) -> dict[str, Tensor]:
        """Name what of the momentum copy follows."""
        return floating_state(self.classifier)


def floating_state(module: nn.Module) -> dict[str, Tensor]:
    """Name parameters and batch-norm statistics; counters of batches are left out."""
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
