import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import random_call

from mixer_server.passes import run_pass
from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer
from samix.mixing.render import render_masks
from samix.wire import MixReply


def mask_of(reply: MixReply, lam: np.ndarray) -> np.ndarray:
    logits = torch.from_numpy(reply.mask_logits.astype(np.float32))
    return render_masks(logits, torch.from_numpy(lam), (32, 32), reply.rendering).numpy()


def test_answers_what_the_mixer_computes(mixer: FrozenMixer):
    """The logits of a request are those of `mask_logits`, rounded to float16."""
    call = random_call()
    plan = MixPlan(lam=torch.from_numpy(call.lam), partner=torch.from_numpy(call.partner))

    (outcome,) = run_pass(mixer, [call])

    expected = mixer.mask_logits(torch.from_numpy(call.pixels), plan).half().numpy()
    assert np.array_equal(outcome.reply.mask_logits, expected)
    assert (outcome.reply.mixer, outcome.reply.version) == ("tiny", mixer.version)
    assert outcome.num_nonfinite == 0


def test_same_request_alone_twice(mixer: FrozenMixer):
    """A request that is computed alone twice gets the same bits."""
    call = random_call(wants_images=True)

    (first,), (second,) = run_pass(mixer, [call]), run_pass(mixer, [call])

    assert np.array_equal(first.reply.mask_logits, second.reply.mask_logits)
    assert np.array_equal(first.reply.images, second.reply.images)  # pyright: ignore[reportArgumentType]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=2, max_size=4))
def test_answer_does_not_depend_on_company(mixer: FrozenMixer, sizes: list[tuple[int, bool]]):
    """A request gets the same masks within 1e-3, alone or grouped with others."""
    calls = [random_call(size, seed=index, wants_images=wants) for index, (size, wants) in enumerate(sizes)]

    together = run_pass(mixer, calls)

    for call, outcome in zip(calls, together, strict=True):
        (alone,) = run_pass(mixer, [call])
        assert mask_of(outcome.reply, call.lam) == pytest.approx(mask_of(alone.reply, call.lam), abs=1e-3)
        assert outcome.lambda_error == pytest.approx(alone.lambda_error, abs=1e-3)
        assert (outcome.reply.images is not None) == call.wants_images


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_are_the_mix(mixer: FrozenMixer, dtype: type):
    """Mixed images are mask * image + (1 - mask) * partner, rounded to 8 bits, for either pixel format."""
    pixels = random_call().pixels
    unit = pixels.astype(np.float32) / 255
    call = random_call(wants_images=True, pixels=pixels if dtype is np.uint8 else unit)

    (outcome,) = run_pass(mixer, [call])

    masks = mask_of(outcome.reply, call.lam)
    expected = 255 * (masks * unit + (1 - masks) * unit[call.partner])
    assert outcome.reply.images is not None
    assert outcome.reply.images.dtype == np.uint8
    assert outcome.reply.images == pytest.approx(expected, abs=0.51)


def test_lambda_error(mixer: FrozenMixer):
    """The lambda error is the distance of the masks' means from lambda, and zero for constant masks."""
    learned = random_call(lam=np.full(4, 0.3, np.float32))
    constant = random_call(lam=np.full(4, mixer.spec.rendering.lam_margin / 2, np.float32))

    first, second = run_pass(mixer, [learned, constant])

    distance = np.abs(mask_of(first.reply, learned.lam).mean((1, 2, 3)) - 0.3).mean()
    assert first.lambda_error == pytest.approx(distance, abs=0.01)
    assert second.lambda_error == pytest.approx(0, abs=1e-6)
