"""Passes on a GPU; those of the marked tests need one."""

import numpy as np
import pytest
import torch
from serving import random_call, tiny_mixer

from mixer_server.engine.cuda_graphs import Graphs, next_size
from mixer_server.engine.cuda_passes import CudaPasses
from mixer_server.engine.decoding import Decoder
from mixer_server.engine.passes import run_pass
from samix.errors import BadBatch
from samix.jpeg import JpegBatch, encode_images
from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.presets import tiny_spec
from samix.pieces import as_array
from samix.wire import MixCall, MixReply


def test_passes_are_padded_to_the_next_recording():
    """A pass takes the smallest recording that holds it; one that none holds keeps its number."""
    assert [next_size(number, (4, 16)) for number in (1, 4, 5, 16, 17)] == [4, 4, 16, 16, 17]
    assert next_size(3, ()) == 3


def test_what_no_recording_fits_is_computed_the_plain_way():
    """A mixer without recordings gives the masks it gives without a GPU's help."""
    mixer, graphs = tiny_mixer(), Graphs((4,), torch.float32)
    images = torch.arange(3 * 3 * 16 * 16).reshape(3, 3, 16, 16).to(torch.uint8)
    plan = MixPlan(lam=torch.full((3,), 0.3), partner=torch.tensor([1, 2, 0]))

    logits = graphs.mask_logits(mixer, images, plan)

    assert torch.equal(logits, mixer.mask_logits(images, plan))


@pytest.fixture
def passes(decoder: Decoder) -> CudaPasses:
    return CudaPasses(torch.device("cuda"), decoder, graph_sizes=(4, 8))


@pytest.fixture
def mixer() -> FrozenMixer:
    return random_mixer(tiny_spec(), seed=0, name="tiny", device="cuda")


def reply_of(passes: CudaPasses, mixer: FrozenMixer, call: MixCall) -> MixReply:
    return passes.launch(mixer, [passes.prepare(mixer, call)]).finish()[0].reply


def assert_alike(one: MixReply, other: MixReply) -> None:
    masks = [1 / (1 + np.exp(-reply.mask_logits.astype(np.float32))) for reply in (one, other)]
    assert masks[0] == pytest.approx(masks[1], abs=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_gpu_answers_what_a_cpu_does(passes: CudaPasses, mixer: FrozenMixer, is_warm: bool, dtype: type):
    """Masks and images of a GPU are those of a CPU, recorded or not, for any number of images."""
    if is_warm:
        passes.warm(mixer, 32)
    for number in (1, 4, 7, 9):
        pixels = random_call(number).pixels
        assert isinstance(pixels, np.ndarray)
        unit = pixels if dtype is np.uint8 else pixels.astype(np.float32) / 255
        call = random_call(number, pixels=unit, wants_images=True)

        reply = reply_of(passes, mixer, call)

        (expected,) = run_pass(tiny_mixer(), [call])
        assert_alike(reply, expected.reply)
        assert reply.images is not None
        assert as_array(reply.images).astype(int) == pytest.approx(expected.reply.images, abs=1)


@pytest.mark.gpu
def test_passes_under_way_do_not_mingle(passes: CudaPasses, mixer: FrozenMixer):
    """Passes that are launched before the first is finished each answer their own requests."""
    passes.warm(mixer, 32)
    calls = [random_call(1 + number % 8, seed=number) for number in range(40)]
    alone = [reply_of(passes, mixer, call) for call in calls]

    prepared = [passes.prepare(mixer, call) for call in calls]
    running = [passes.launch(mixer, [call]) for call in prepared]

    for one, launched in zip(alone, running, strict=True):
        assert_alike(one, launched.finish()[0].reply)


@pytest.mark.gpu
def test_pictures_are_decoded_on_the_gpu(passes: CudaPasses, mixer: FrozenMixer):
    """Pictures get masks; a damaged one is refused by its row, and the next request is answered."""
    slopes = np.broadcast_to(np.linspace(0, 200, 32), (2, 3, 32, 32)).astype(np.uint8)
    pictures = encode_images(slopes, 95)

    def call_of(*data: bytes) -> MixCall:
        batch = JpegBatch(data=b"".join(data), lengths=[len(one) for one in data], shape=(2, 3, 32, 32))
        return random_call(2, pixels=batch)

    with pytest.raises(BadBatch, match="image 1 is a damaged JPEG"):
        passes.prepare(mixer, call_of(pictures[0], pictures[1][: len(pictures[1]) // 2]))
    reply = reply_of(passes, mixer, call_of(*pictures))

    (expected,) = run_pass(tiny_mixer(), [random_call(2, pixels=slopes)])
    masks = [1 / (1 + np.exp(-one.mask_logits.astype(np.float32))) for one in (reply, expected.reply)]
    assert masks[0] == pytest.approx(masks[1], abs=5e-2)


@pytest.mark.gpu
def test_half_precision(mixer: FrozenMixer, decoder: Decoder):
    """Recordings in bfloat16 give masks within 1e-2 of those in float32."""
    passes = CudaPasses(torch.device("cuda"), decoder, precision=torch.bfloat16, graph_sizes=(4,))
    passes.warm(mixer, 32)
    call = random_call()

    reply = reply_of(passes, mixer, call)

    expected = run_pass(tiny_mixer(), [call])[0].reply
    masks = [1 / (1 + np.exp(-one.mask_logits.astype(np.float32))) for one in (reply, expected)]
    assert masks[0] == pytest.approx(masks[1], abs=1e-2)
