"""The batch that every system is asked to mix, with the answer that all of them give."""

import numpy as np

NUM_IMAGES = 64
IMAGES_SHAPE = (NUM_IMAGES, 3, 224, 224)
LOGITS_SHAPE = (NUM_IMAGES, 1, 14, 14)
MODEL = "mixer"
"""Its name on every server."""


def draw_images() -> np.ndarray:
    """Draw noise: uint8 [64, 3, 224, 224], 9.63 MB."""
    return np.random.default_rng(0).integers(0, 256, IMAGES_SHAPE, np.uint8)


def draw_lam() -> np.ndarray:
    """Draw each image's share: float32 [64]."""
    return np.random.default_rng(1).uniform(0.1, 0.9, NUM_IMAGES).astype(np.float32)


def draw_partner() -> np.ndarray:
    """Draw each image's partner: int64 [64]."""
    return np.random.default_rng(2).permutation(NUM_IMAGES)


def constant_logits() -> np.ndarray:
    """Prepare the answer: float16 [64, 1, 14, 14], 25 kB."""
    return np.zeros(LOGITS_SHAPE, np.float16)


def check_logits(logits: np.ndarray) -> None:
    """Refuse an answer of another shape or dtype.

    Raises:
        ValueError: naming both.
    """
    if logits.shape != LOGITS_SHAPE or logits.dtype != np.float16:
        raise ValueError(f"the answer must be float16 {list(LOGITS_SHAPE)}, got {logits.dtype} {list(logits.shape)}")
