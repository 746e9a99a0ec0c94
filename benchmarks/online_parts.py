"""The parts of an online step, each timed on what the part before it would hand over.

Together they are less than a step: nobody draws plans here, scales pixels, reads losses or describes the masks. What a
step costs beyond their sum is that, and whatever the step wastes.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.step_works import LENGTH, SGD, Subject, Work
from samix.mixing.batch import MixedBatch, MixPlan, as_unit_float
from samix.mixing.mixer_losses import eta_balanced_loss, mask_loss
from samix.mixing.online_config import draw_step_plans
from samix.mixing.optimise import build_optimiser
from samix.mixing.plan import generator_for
from samix.mixing.render import blend, compose, upsample_masks
from trainer.methods.objective import ObjectiveConfig, classify

_SLOPE = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineParts:
    """The tensors between the parts of one step, and the parts."""

    subject: Subject
    """Whose co-training is taken apart."""
    images: Tensor
    """float32 [B, 3, H, W] in [0, 1]."""
    plan: MixPlan
    """Of both mixes."""
    features: Tensor
    """float32 [B, C, h, w], of the momentum encoder."""
    logits: Tensor
    """float32 [B, 1, h, w], of the block."""
    mixed: MixedBatch
    """What both classifiers see."""
    optimisers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    """The classifier's and the block's."""

    @classmethod
    def build(cls, subject: Subject) -> "OnlineParts":
        """Run the mixer once for the tensors."""
        method, config = subject.co_training, subject.config
        images = as_unit_float(subject.batch.images)
        plan = draw_step_plans(len(images), config, generator_for("bench parts")).students
        features = method.online.features(images)
        with torch.no_grad():
            logits = method.online.block(features, plan.lam, plan.partner)
        return cls(
            subject=subject,
            images=images,
            plan=plan,
            features=features,
            logits=logits,
            mixed=compose(images, subject.batch.labels, plan, logits, method.online.spec.rendering),
            optimisers=(
                build_optimiser(SGD, method.classifier),
                build_optimiser(config.mixer_optimiser, method.online.block),
            ),
        )

    def works(self) -> dict[str, Work]:
        """Name the parts in the order of a step; both learning parts leave the gradients that the optimisers need."""
        online = self.subject.co_training.online
        return {
            "momentum encoder": partial(online.features, self.images),
            "block, with gradient": self.teach_block,
            "block, without": torch.no_grad()(partial(online.block, self.features, self.plan.lam, self.plan.partner)),
            "rendering, with gradient": self.render_for_mixer,
            "rendering, without": self.render_for_classifier,
            "momentum classifier": self.judge,
            "classifier": self.teach_classifier,
            "optimisers": self.step_optimisers,
            "momentum update": self.follow,
        }

    def teach_block(self) -> None:
        """Predict logits, and bring a gradient back to the block's weights."""
        self.optimisers[1].zero_grad(set_to_none=True)
        logits = self.subject.co_training.online.block(self.features, self.plan.lam, self.plan.partner)
        logits.backward(torch.full_like(logits, _SLOPE))

    def render_for_mixer(self) -> None:
        """Make masks, mix, and bring gradients of pixels and mask loss back to the logits."""
        online = self.subject.co_training.online
        logits = self.logits.detach().requires_grad_()
        masks = upsample_masks(logits, self._size(), online.spec.rendering.upsampling)
        pixels = blend(self.images, self.plan.partner, masks)
        loss = mask_loss(masks, self.plan.lam, online.config.mask_margin, variance=online.config.mask_variance)
        torch.autograd.grad([pixels, loss], logits, [self.images, torch.ones_like(loss)])

    def render_for_classifier(self) -> None:
        """Make masks and mix."""
        rendering = self.subject.co_training.online.spec.rendering
        compose(self.images, self.subject.batch.labels, self.plan, self.logits, rendering)

    def judge(self) -> None:
        """Evaluate the mixer's loss by the momentum classifier, and bring its gradient back to the pixels."""
        online, labels = self.subject.co_training.online, self.subject.batch.labels
        pixels = self.mixed.images.detach().requires_grad_()
        logits = online.classifier(pixels)
        loss = eta_balanced_loss(logits, labels, labels[self.plan.partner], self.plan.lam, online.config.eta)
        torch.autograd.grad(loss, pixels)

    def teach_classifier(self) -> None:
        """Evaluate the classifier's loss on mixed images, and bring its gradient back to the weights."""
        self.optimisers[0].zero_grad(set_to_none=True)
        classify(self.subject.co_training.classifier, self.mixed, self.images, ObjectiveConfig()).backward()

    def step_optimisers(self) -> None:
        """Update classifier and block."""
        for optimiser in self.optimisers:
            optimiser.step()

    def follow(self) -> None:
        """Let the momentum copy follow."""
        method = self.subject.co_training
        method.online.block.project()
        method.online.follow(method.classifier, step=0, total_steps=LENGTH.total_steps)

    def _size(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]
