from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import random_call

from mixer_server.engine.decoding import Decoder
from mixer_server.engine.passes import MixerPasses, run_pass
from samix.errors import BadBatch
from samix.jpeg import JpegBatch, encode_images
from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer
from samix.mixing.render import render_masks
from samix.pieces import as_array
from samix.wire import MixCall, MixReply


def mask_of(reply: MixReply, lam: np.ndarray) -> np.ndarray:
    logits = torch.from_numpy(reply.mask_logits.astype(np.float32))
    return render_masks(logits, torch.from_numpy(lam), (32, 32), reply.rendering).numpy()


def pixels_of(call: MixCall) -> np.ndarray:
    assert isinstance(call.pixels, np.ndarray)
    return call.pixels


def jpeg_call(num_images: int = 2) -> MixCall:
    pictures = encode_images(pixels_of(random_call(num_images)), 90)
    batch = JpegBatch(data=b"".join(pictures), lengths=[len(data) for data in pictures], shape=(num_images, 3, 32, 32))
    return random_call(num_images, pixels=batch)


@pytest.fixture
def passes() -> Iterator[MixerPasses]:
    made = MixerPasses(Decoder(1))
    yield made
    made.close()


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
    pixels = pixels_of(random_call())
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


def test_images_as_float16(mixer: FrozenMixer):
    """Mixed images that are wanted as float16 are in 0..1, and those of uint8 but for rounding."""
    fine, coarse = (random_call(wants_images=True, image_dtype=np.dtype(dtype)) for dtype in (np.float16, np.uint8))

    first, second = run_pass(mixer, [fine, coarse])

    assert first.reply.images is not None
    assert first.reply.images.dtype == np.float16
    assert 255 * as_array(first.reply.images).astype(np.float32) == pytest.approx(second.reply.images, abs=0.7)


@pytest.mark.parametrize("num_calls", [1, 2])
def test_pixels_may_be_read_only(mixer: FrozenMixer, num_calls: int):
    """Pixels that lie in a message, which nobody may write to, are mixed like others; others are left as they were."""
    pixels = pixels_of(random_call())
    before, frozen = pixels.copy(), pixels.copy()
    frozen.flags.writeable = False

    own = run_pass(mixer, [random_call(pixels=pixels, wants_images=True)] * num_calls)
    message = run_pass(mixer, [random_call(pixels=frozen, wants_images=True)] * num_calls)

    assert np.array_equal(own[0].reply.mask_logits, message[0].reply.mask_logits)
    assert np.array_equal(pixels, before)


def test_order_in_memory_does_not_matter(mixer: FrozenMixer):
    """Pixels that lie channels last, as decoded ones do, get the masks of the same pixels in any other order."""
    pixels = pixels_of(random_call())
    last = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    plain, turned = run_pass(mixer, [random_call()]), run_pass(mixer, [random_call(pixels=last)])

    assert plain[0].reply.mask_logits == pytest.approx(turned[0].reply.mask_logits, abs=1e-5)


def test_pictures_are_decoded_before_they_wait(passes: MixerPasses, mixer: FrozenMixer, decoder: Decoder):
    """Preparing a request decodes its pictures; one whose pixels are there is left as it is."""
    raw, pictures = random_call(), jpeg_call()
    assert isinstance(pictures.pixels, JpegBatch)

    prepared = passes.prepare(mixer, pictures)

    assert np.array_equal(pixels_of(prepared), decoder.decode(pictures.pixels))
    assert prepared.lam is pictures.lam
    assert passes.prepare(mixer, raw) is raw


def test_pictures_that_are_damaged_are_refused(passes: MixerPasses, mixer: FrozenMixer):
    """A picture that cannot be decoded is the fault of its request, told before it waits."""
    call = jpeg_call(1)
    assert isinstance(call.pixels, JpegBatch)
    cut = JpegBatch(data=call.pixels.data[:-30], lengths=[call.pixels.lengths[0] - 30], shape=call.pixels.shape)

    with pytest.raises(BadBatch, match="image 0 is a damaged JPEG"):
        passes.prepare(mixer, random_call(1, pixels=cut))


def test_half_precision_moves_masks_a_little(mixer: FrozenMixer, decoder: Decoder):
    """Passes in bfloat16 give masks within 1e-2 of those in float32, and others."""
    call = random_call(8)
    exact = run_pass(mixer, [call])[0].reply

    (rough,) = MixerPasses(decoder, precision=torch.bfloat16).launch(mixer, [call]).finish()

    assert not np.array_equal(rough.reply.mask_logits, exact.mask_logits)
    assert mask_of(rough.reply, call.lam) == pytest.approx(mask_of(exact, call.lam), abs=1e-2)
