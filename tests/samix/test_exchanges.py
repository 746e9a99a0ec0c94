"""What goes up and what comes back, by choice of the caller."""

import pickle
import threading
from collections.abc import Iterator

import pytest
import torch
from scripted_server import PATIENCE_S, ScriptedServicer, Tally, contrast_logits, serving
from torch import Tensor

from samix.client.config import ClientConfig, Exchange
from samix.client.remote import connect
from samix.errors import BadBatch, InputError, MixerCancelled
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
    from samix.client import remote as module

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
