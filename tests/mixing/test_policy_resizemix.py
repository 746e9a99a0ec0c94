"""ResizeMix: the whole partner, made smaller."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from samix.mixing.policies import resizemix


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), lam=st.floats(0, 1), height=st.integers(1, 40), width=st.integers(1, 40))
def test_the_patch_is_the_whole_partner_inside_the_image(seed: int, lam: float, height: int, width: int) -> None:
    """The box has sqrt(1 - lam) of either side, lies inside the image, and shows the partner resized."""
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed % 1000))

    mixed = resizemix().mix(images, seed=seed, lam=lam, partner=torch.tensor([1, 0]))

    box = mixed.masks[0, 0] == 0
    rows, columns = box.any(dim=1).nonzero().flatten(), box.any(dim=0).nonzero().flatten()
    side = (1 - lam) ** 0.5
    if box.any():
        assert abs(len(rows) - side * height) <= 0.5 + 1e-4
        assert abs(len(columns) - side * width) <= 0.5 + 1e-4
        patch = mixed.images[0][:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        resized = F.interpolate(images[1:], (len(rows), len(columns)), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(patch, resized)
        assert box.sum() == len(rows) * len(columns)
    assert torch.equal(mixed.images[0][:, ~box], images[0][:, ~box])


def test_patches_lie_everywhere() -> None:
    """Each pixel is covered by some patch, the corners too."""
    images = torch.zeros(1, 3, 16, 16)

    covered = torch.stack([1 - resizemix().mix(images, seed=seed, lam=0.75).masks[0, 0] for seed in range(300)])

    assert (covered.sum(dim=0) > 0).all()


def test_the_side_of_a_patch_is_drawn_uniformly() -> None:
    """Where no lam is given, sides are uniform in 0.1..0.8 of the image's, so that lam lies in 0.36..0.99."""
    images = torch.zeros(1, 3, 100, 100)

    lam = torch.stack([resizemix().mix(images, seed=seed).lam[0] for seed in range(500)])

    sides = (1 - lam).sqrt()
    assert sides.min() >= 0.1 - 0.005
    assert sides.max() <= 0.8 + 0.005
    assert sides.mean().item() == pytest.approx(0.45, abs=0.03)
    assert sides.std().item() == pytest.approx(0.7 / 12**0.5, abs=0.02)


def test_each_image_gets_its_own_patch_of_its_own_partner() -> None:
    """With one lam for each image, sizes and places differ and every patch is of the right partner."""
    values = torch.tensor([0.1, 0.4, 0.7])
    images = values.view(3, 1, 1, 1).expand(3, 3, 20, 20)

    mixed = resizemix().mix(images, seed=1, lam=torch.tensor([0.75, 0.84, 0.36]), partner=torch.tensor([1, 2, 0]))

    for image, mask, own, other in zip(mixed.images, mixed.masks, values, values[[1, 2, 0]], strict=True):
        torch.testing.assert_close(image, torch.where(mask == 1, own, other).expand(3, -1, -1))
    torch.testing.assert_close(mixed.lam, torch.tensor([0.75, 0.84, 0.36]))
