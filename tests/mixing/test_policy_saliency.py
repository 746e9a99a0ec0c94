"""Saliency, static and by gradient, and SaliencyMix, which cuts at its peak."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samix.errors import BadBatch
from samix.mixing.policies import fine_grained_saliency, gradient_saliency, puzzlemix, saliencymix


def pictures(batch_size: int = 3, height: int = 20, width: int = 17) -> Tensor:
    return torch.rand(batch_size, 3, height, width, generator=torch.Generator().manual_seed(0))


def naive_saliency(image: np.ndarray) -> np.ndarray:
    """Compute the fine-grained saliency of one image [3, H, W] pixel by pixel, window by window."""
    grey = np.pad(np.tensordot([0.299, 0.587, 0.114], image, 1), 2, mode="edge")
    for _ in range(2):
        shape = (grey.shape[0] - 2, grey.shape[1] - 2)
        weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
        grey = np.array(
            [[(grey[y : y + 3, x : x + 3] * weights).sum() for x in range(shape[1])] for y in range(shape[0])]
        )
    maps = np.zeros((2, *grey.shape))
    for radius in (12, 24, 28, 48, 56, 112):
        for y, x in np.ndindex(grey.shape):
            window = grey[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            contrast = grey[y, x] - (window.sum() - grey[y, x]) / (window.size - 1)
            if abs(contrast) > 1 / 255:
                maps[0 if contrast > 0 else 1, y, x] += abs(contrast)
    combined = (maps / maps.max(axis=(1, 2), keepdims=True)).sum(axis=0)
    return combined / combined.max()


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(5)
    )


@pytest.mark.parametrize("size", [(20, 17), (40, 30), (1, 9)])
def test_static_saliency_is_that_of_a_plain_computation(size: tuple[int, int]) -> None:
    """Shifted sums and integral images give what windows cut out one by one give."""
    images = pictures(2, *size)

    heat = fine_grained_saliency(images)

    expected = np.stack([naive_saliency(image.double().numpy()) for image in images])
    np.testing.assert_allclose(heat, expected, atol=2e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_nothing_stands_out_in_one_colour(value: float) -> None:
    """An image of one colour has no saliency, rather than that of rounding errors; a single pixel has none either."""
    for size in (64, 1):
        assert (fine_grained_saliency(torch.full((1, 3, size, size), value)) == 0).all()


def test_what_differs_from_its_surroundings_is_salient() -> None:
    """A dark spot on white and a bright one on black are where the map is highest."""
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    images[0, :, 20:24, 5:9], images[1, :, 20:24, 5:9] = 1, 0

    heat = fine_grained_saliency(images)

    assert (heat.amax(dim=(1, 2)) == 1).all()
    assert (heat[:, 21:23, 6:8] > 0.9).all()
    assert (heat[:, :16] < 0.75).all()


def test_gradient_saliency_is_that_of_a_model_done_by_hand() -> None:
    """For a linear model the gradient of the loss is W^T (softmax - one-hot), and saliency its norm over channels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    images, labels = pictures(3, 4, 4), torch.tensor([0, 3, 4])

    heat = gradient_saliency(model)(images, labels)

    with torch.no_grad():
        error = model(images).softmax(dim=1) - F.one_hot(labels, 5)
        gradient = (error @ next(model[1].parameters())).view(3, 3, 4, 4)
    torch.testing.assert_close(heat, gradient.norm(dim=1))


def test_gradient_saliency_leaves_the_model_as_it_was() -> None:
    """In the middle of a training step mode, gradients, statistics and the global random state do not change."""
    model = classifier()
    images, labels = pictures(4, 6, 6), torch.tensor([0, 1, 2, 3])
    model(images).sum().backward()
    model[0].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    state = torch.get_rng_state()

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        heat = gradient_saliency(model)(images, labels)

    assert heat.dtype == torch.float32
    assert (heat > 0).any()
    assert [module.training for module in model] == [False, True, True, True, True, True]
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    after = [parameter.grad for parameter in model.parameters()]
    assert all(new is not None and torch.equal(new, old) for new, old in zip(after, gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not images.requires_grad


def test_gradient_saliency_of_an_image_does_not_depend_on_its_batch() -> None:
    """Alone or among others, an image has the same saliency."""
    saliency = gradient_saliency(classifier())
    images, labels = pictures(3, 6, 6), torch.tensor([0, 1, 2])

    together, alone = saliency(images, labels), saliency(images[1:2], labels[1:2])

    torch.testing.assert_close(together[1:2], alone)


def test_a_model_that_fails_is_put_back_into_its_mode() -> None:
    """Training mode is restored also where the model refuses the images."""
    model = classifier()
    saliency = gradient_saliency(model)
    saliency(pictures(2, 6, 6), torch.tensor([0, 1]))

    with pytest.raises(RuntimeError):
        saliency(pictures(2, 9, 9), torch.tensor([0, 1]))

    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("policy", [saliencymix, puzzlemix])
def test_saliency_by_gradient_needs_labels(policy) -> None:
    """A batch without labels has no loss; the message says what to do."""
    mixer = policy(saliency=gradient_saliency(classifier()))

    assert mixer.mix(pictures(4, 6, 6), torch.arange(4), seed=0).images.shape == (4, 3, 6, 6)
    with pytest.raises(BadBatch, match=r"needs labels: give labels=, or leave out saliency="):
        mixer.mix(pictures(4, 6, 6), seed=0)


@pytest.mark.parametrize("policy", [saliencymix, puzzlemix])
@pytest.mark.parametrize(
    ("heat", "complaint"),
    [
        (torch.zeros(2, 1, 6, 6), r"\[batch, height, width\] of images \[2, 3, 6, 6\], got \[2, 1, 6, 6\]"),
        (torch.full((2, 6, 6), -1.0), "not negative, got -1 to -1"),
        (torch.full((2, 6, 6), float("nan")), "got nan to nan; did it diverge"),
        (torch.full((2, 6, 6), float("inf")), "got inf to inf"),
    ],
)
def test_a_saliency_that_cannot_be_used_is_refused(policy, heat: Tensor, complaint: str) -> None:
    """A map of a wrong shape, or one that is negative or not finite, is refused by value."""
    with pytest.raises(BadBatch, match=complaint):
        policy(saliency=lambda _images, _labels: heat).mix(pictures(2, 6, 6), seed=0)


def test_saliencymix_cuts_around_the_peak_of_each_partner() -> None:
    """Each image gets a box of sqrt(1 - lam) of a side around the most salient pixel of its own partner, clipped."""
    heat = torch.zeros(3, 20, 30)
    for row, (y, x) in enumerate([(10, 8), (2, 15), (19, 29)]):
        heat[row, y, x] = 1

    mixed = saliencymix(saliency=lambda _images, _labels: heat).mix(
        pictures(3, 20, 30), lam=0.84, partner=torch.tensor([1, 2, 0])
    )

    expected = torch.ones(3, 1, 20, 30)
    expected[0, :, :6, 9:21] = 0  # 8 x 12 around (2, 15), clipped above
    expected[1, :, 15:, 23:] = 0
    expected[2, :, 6:14, 2:14] = 0
    assert torch.equal(mixed.masks, expected)
    torch.testing.assert_close(mixed.lam, expected.mean(dim=(1, 2, 3)))
