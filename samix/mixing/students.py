"""From the logits of a mixer in training to the classifier's batch: the part of a step that the trainers compute."""

from typing import Literal

from torch import Tensor

from samix.mixing.adjust import adjust_masks
from samix.mixing.batch import MixedBatch
from samix.mixing.online_config import StepPlans
from samix.mixing.render import Rendering, keep_plain, mixed_batch, upsample_masks


def compose_students(
    images: Tensor,
    labels: Tensor,
    plans: StepPlans,
    logits: Tensor,
    rendering: Rendering,
    *,
    mode: Literal["paper", "openmixup"],
) -> MixedBatch:
    """Finish the mix that the classifier learns from, all on one device.

    Args:
        images: float32 [B, 3, H, W] in [0, 1], the clean batch.
        labels: int64 [B].
        plans: of this step.
        logits: [B, 1, h, w] of image i's share, for the students' plan.
        rendering: the mixer's settings.
        mode: whose arithmetic; the public reference adjusts masks to the lam of the mixer's own batch (B3).
    """
    plan = plans.students
    masks = upsample_masks(logits, (images.shape[2], images.shape[3]), rendering.upsampling)
    if plans.adjusts:
        masks = adjust_masks(masks, plans.mixers.lam if mode == "openmixup" else plan.lam)
    return mixed_batch(images, labels, plan, keep_plain(masks, plan.lam, rendering.lam_margin))
