"""What goes up and what comes back, by choice of the caller."""

import pickle
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import PATIENCE_S, ScriptedServicer, Tally, contrast_logits, serving
from torch import Tensor

from samix.client.config import ClientConfig, Encoding, Exchange, Priority
from samix.client.pixels import shrink
from samix.client.remote import connect
from samix.errors import BadBatch, InputError, MixerCancelled
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.batch import MixPlan
from samix.mixing.plan import generator_for, resolve_plan

PATIENT = ClientConfig(deadline_s=PATIENCE_S)


@pytest.fixture
def running() -> Iterator[tuple[ScriptedServicer, str]]:
    with serving(contrast_logits) as servicer_and_target:
        yield servicer_and_target


def smooth_images(count: int = 6, side: int = 32) -> Tensor:
    """Pictures as JPEG likes them, uint8 [B, 3, H, W]."""
    noise = torch.rand(count, 3, 4, 4, generator=generator_for("smooth"))
    return torch.nn.functional.interpolate(noise, (side, side), mode="bilinear").mul(255).byte()


def plan_for(images: Tensor) -> MixPlan:
    return resolve_plan(len(images), lam=None, partner=None, generator=generator_for(1))


def test_jpeg_changes_masks_little_and_pixels_not_at_all(running: tuple[ScriptedServicer, str]) -> None:
    """With JPEGs upward the masks are close to those of exact pixels, and what is blended are the exact pixels."""
    _, target = running
    images = smooth_images()

    with connect(target, config=PATIENT) as exact, connect(target, encoding="jpeg", config=PATIENT) as remote:
        expected = exact.mix(images, seed=1)
        mixed = remote.mix(images, seed=1)

    plan, pixels = plan_for(images), images.float() / 255
    blended = mixed.masks * pixels + (1 - mixed.masks) * pixels[plan.partner]
    assert not torch.equal(mixed.masks, expected.masks)
    torch.testing.assert_close(mixed.masks, expected.masks, atol=0.1, rtol=0)
    torch.testing.assert_close(mixed.images, blended, atol=1e-5, rtol=0)


def test_jpeg_takes_fewer_bytes(running: tuple[ScriptedServicer, str]) -> None:
    """A request of photos takes a fraction of the bytes as JPEGs, less at a lower quality."""
    _, target = running
    images, tally = smooth_images(8, 128), Tally()

    exchanges = [Exchange(), Exchange(encoding="jpeg"), Exchange(encoding="jpeg", jpeg_quality=50)]
    with connect(target, config=PATIENT, observer=tally) as remote:
        for exchange in exchanges:
            remote.submit(images, plan=plan_for(images), exchange=exchange).result()

    raw, good, poor = tally.sent_bytes
    assert raw > images.numel()
    assert good < raw / 10
    assert poor < good


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_smaller_copies_go_up(running: tuple[ScriptedServicer, str], encoding: Encoding) -> None:
    """With an encoder size small copies go up, the masks are as large as the images, and exact pixels are blended."""
    servicer, target = running
    images, tally, shapes = smooth_images(6, 128), Tally(), []
    servicer.predict = lambda call: (shapes.append(call.pixels.shape), contrast_logits(call))[1]

    with connect(target, config=PATIENT) as exact:
        expected = exact.mix(images, seed=1)
    with connect(target, encoding=encoding, encoder_size=32, config=PATIENT, observer=tally) as remote:
        mixed = remote.mix(images, seed=1)

    plan, pixels = plan_for(images), images.float() / 255
    blended = mixed.masks * pixels + (1 - mixed.masks) * pixels[plan.partner]
    assert shapes == [(6, 3, 128, 128), (6, 3, 32, 32)]
    assert tally.sent_bytes[0] < images.numel() / 15
    torch.testing.assert_close(mixed.masks, expected.masks, atol=0.1, rtol=0)
    torch.testing.assert_close(mixed.images, blended, atol=1e-5, rtol=0)


def test_mixed_images_may_come_in_finer_steps(running: tuple[ScriptedServicer, str]) -> None:
    """Mixed images that come as float16 are closer to those that are blended here than 8 bits can be."""
    _, target = running
    images = smooth_images()

    with connect(target, config=PATIENT) as remote:
        here = remote.mix(images, seed=1)
    with connect(target, reply="images", image_format="float16", config=PATIENT) as remote:
        there = remote.mix(images, seed=1)

    assert there.images.dtype == torch.float32
    torch.testing.assert_close(there.images, here.images, atol=1e-3, rtol=0)
    assert not torch.equal(there.images, there.images.mul(255).round().div(255))


@pytest.mark.parametrize(
    ("priority", "number"), [("low", pb.PRIORITY_LOW), ("normal", pb.PRIORITY_NORMAL), ("high", pb.PRIORITY_HIGH)]
)
def test_priorities_are_told(running: tuple[ScriptedServicer, str], priority: Priority, number: int) -> None:
    """The server hears how urgent a batch is."""
    servicer, target = running
    heard: list[int] = []
    servicer.predict = lambda call: (heard.append(call.priority), contrast_logits(call))[1]

    with connect(target, priority=priority, config=PATIENT) as remote:
        remote.mix(smooth_images(), seed=1)

    assert heard == [number]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_copies_keep_their_proportions(height: int, width: int, longer_side: int, are_bytes: bool) -> None:
    """A copy has the longer side that was asked for, the same proportions, dtype and range; a small image is none."""
    images = torch.ones(1, 3, height, width) if not are_bytes else torch.full((1, 3, height, width), 255).byte()

    copies = shrink(images, longer_side)

    if max(height, width) <= longer_side:
        assert copies is images
        return
    small_height, small_width = copies.shape[2:]
    assert max(small_height, small_width) == longer_side
    assert abs(small_height * width - small_width * height) <= max(height, width)
    assert copies.dtype == images.dtype
    assert copies.max() <= images.max()
    torch.testing.assert_close(copies, images[:, :, :small_height, :small_width])


@pytest.mark.parametrize("size", [(9, 40), (40, 9), (3, 2), (32, 4)])
def test_copies_of_bytes_are_those_of_floats(size: tuple[int, int]) -> None:
    """Bytes become the same copies as floats, but for rounding, also where one row or column is left."""
    images = torch.randint(256, (2, 3, *size), dtype=torch.uint8, generator=generator_for("pixels"))

    copies, expected = shrink(images, max(size) // 3), shrink(images.float() / 255, max(size) // 3)

    assert (copies.float() - expected * 255).abs().max() <= 1


def test_no_encoder_size_changes_nothing() -> None:
    """Without an encoder size the images themselves go up."""
    images = smooth_images()

    assert shrink(images, None) is images


@pytest.mark.gpu
def test_a_gpu_shrinks_alike() -> None:
    """Copies that a GPU makes are those of the CPU but for one step of a byte."""
    images = smooth_images(6, 128)

    copies = shrink(images.cuda(), 48)

    assert copies.is_cuda
    assert (copies.cpu().int() - shrink(images, 48).int()).abs().max() <= 1


def test_each_batch_may_travel_its_own_way(running: tuple[ScriptedServicer, str]) -> None:
    """The exchange of one batch can differ from that of its client, and its times are told."""
    _, target = running
    images = smooth_images()

    with connect(target, config=PATIENT) as remote:
        pending = remote.submit(images, plan=plan_for(images), exchange=Exchange(reply="images"))
        mixed = pending.result()

    exact = images.float() / 255
    assert not torch.equal(mixed.images, exact)
    assert torch.equal(mixed.images, mixed.images.mul(255).round().div(255))  # it came as 8 bits
    times = pending.times
    assert 0 < times.encode_s < times.answer_s < times.total_s
    assert times.total_s == times.answer_s + times.blend_s


def test_bytes_are_under_way_until_the_answer(running: tuple[ScriptedServicer, str]) -> None:
    """A request counts as under way from when it is submitted until it is answered, failed or cancelled."""
    servicer, target = running
    servicer.stalls = lambda _call: True
    images = smooth_images()
    with connect(target, config=PATIENT) as remote:
        pending = [
            remote.submit(images, plan=plan_for(images), exchange=exchange)
            for exchange in (Exchange(), Exchange(encoding="jpeg"))
        ]
        servicer.wait_until(lambda s: len(s.active) == 2)
        waiting = [mix.num_bytes_under_way for mix in pending]

        servicer.gate.set()
        pending[0].result()
        pending[1].cancel()

        assert [mix.num_bytes_under_way for mix in pending] == [0, 0]
    assert waiting[0] > images.numel() > waiting[1] > 0


def test_encoding_does_not_hold_up_the_caller(running: tuple[ScriptedServicer, str]) -> None:
    """While batches are encoded, the caller goes on; all of them are answered."""
    _, target = running
    caller = threading.current_thread()
    seen: set[threading.Thread] = set()

    class Watching(Tally):
        def sent(self, num_bytes: int) -> None:
            super().sent(num_bytes)
            seen.add(threading.current_thread())

    images = smooth_images()
    with connect(target, encoding="jpeg", config=PATIENT, observer=Watching()) as remote:
        mixed = list(remote.stream(((images, torch.full((6,), i)) for i in range(8)), seed=1))

    assert [int(batch.labels_a[0]) for batch in mixed if batch.labels_a is not None] == list(range(8))
    assert seen
    assert caller not in seen


def test_float_images_do_not_travel_as_jpeg(running: tuple[ScriptedServicer, str]) -> None:
    """Float images with encoding jpeg are refused with the cure, by the result."""
    _, target = running

    with (
        connect(target, encoding="jpeg", config=PATIENT) as remote,
        pytest.raises(BadBatch, match="got float32; give uint8 images, or take encoding 'raw'"),
    ):
        remote.mix(torch.zeros(2, 3, 8, 8), seed=1)


def test_closed_while_encoding(running: tuple[ScriptedServicer, str]) -> None:
    """Closing a mixer ends what it has not sent yet as cancelled, and what is submitted later too."""
    servicer, target = running
    servicer.stalls = lambda _call: True
    images = smooth_images()
    remote = connect(target, encoding="jpeg", config=PATIENT)
    pending = [remote.submit(images, plan=plan_for(images)) for _ in range(20)]

    remote.close()
    pending.append(remote.submit(images, plan=plan_for(images)))

    for mix in pending:
        with pytest.raises(MixerCancelled):
            mix.result()


def test_pickled_with_threads(running: tuple[ScriptedServicer, str]) -> None:
    """A mixer that has encoded can be pickled for a spawned worker."""
    _, target = running
    images = smooth_images()

    with connect(target, encoding="jpeg", config=PATIENT) as remote:
        expected = remote.mix(images, seed=1)
        with pickle.loads(pickle.dumps(remote)) as copy:
            mixed = copy.mix(images, seed=1)

    assert torch.equal(mixed.images, expected.images)


def test_mix_checks_once(running: tuple[ScriptedServicer, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is checked once on its way, which for float images means to read all of it."""
    from samix.client import remote_mixer as module

    calls: list[Tensor] = []
    check = module.check_images
    monkeypatch.setattr(module, "check_images", lambda images: (calls.append(images), check(images)))
    with connect(running[1], config=PATIENT) as remote:
        remote.mix(smooth_images(), seed=1)

    assert len(calls) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"reply": "thumbs"}, "reply must be one of masks, images, got 'thumbs'"),
        ({"encoding": "png"}, "encoding must be one of raw, jpeg, got 'png'"),
        ({"jpeg_quality": 0}, r"jpeg_quality must lie in 1\.\.100, got 0"),
        ({"jpeg_quality": 101}, "got 101"),
        ({"reply": "images", "encoding": "jpeg"}, "would mix decoded JPEGs"),
        ({"encoder_size": 0}, "encoder_size must be at least 1, got 0"),
        ({"reply": "images", "encoder_size": 112}, "would mix copies of 112 pixels instead of the exact ones"),
        ({"image_format": "float64"}, "image_format must be one of uint8, float16, got 'float64'"),
        ({"image_format": "float16"}, "image_format 'float16' is one of mixed images; take reply 'images'"),
        ({"priority": "urgent"}, "priority must be one of low, normal, high, got 'urgent'"),
    ],
)
def test_impossible_exchanges(settings: dict, sentence: str) -> None:
    """An exchange that there is not is refused before anything is sent."""
    with pytest.raises(InputError, match=sentence):
        connect("localhost:1", **settings)


def test_threads_end_with_the_block(running: tuple[ScriptedServicer, str]) -> None:
    """Leaving the block ends the encoding threads."""
    with connect(running[1], encoding="jpeg", config=PATIENT) as remote:
        remote.mix(smooth_images(), seed=1)

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]
