"""A mixer on a server mixes like the same mixer in this process, in order and several batches ahead."""

import logging
import pickle
from collections.abc import Iterator

import pytest
import torch
from scripted_server import ScriptedServicer, Tally, contrast_logits, first_pixel, lively_mixer, predict_with, serving
from torch import Tensor

from samix.client.config import ClientConfig
from samix.client.remote import RemoteMixer, connect
from samix.errors import BadBatch, InputError, MixerBroken, MixerCancelled, MixerTimeout
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import generator_for, resolve_plan

Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def local() -> FrozenMixer:
    return lively_mixer()


@pytest.fixture(params=["streams", "calls"])
def servicer_and_target(request: pytest.FixtureRequest) -> Iterator[tuple[ScriptedServicer, str]]:
    """A server with streams, or one of before there were any."""
    with serving(contrast_logits) as running:
        running[0].has_streams = request.param == "streams"
        yield running


@pytest.fixture
def servicer(servicer_and_target: tuple[ScriptedServicer, str]) -> ScriptedServicer:
    return servicer_and_target[0]


@pytest.fixture
def target(servicer_and_target: tuple[ScriptedServicer, str]) -> str:
    return servicer_and_target[1]


@pytest.fixture
def remote(target: str) -> Iterator[RemoteMixer]:
    with connect(target, config=ClientConfig(deadline_s=60)) as mixer:
        yield mixer


def batch_of(size: int = 6, *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear").mul(255).byte()
    return images, torch.randint(100, (size,), generator=generator)


def numbered_batches(count: int) -> list[Batch]:
    """Batches whose every pixel and label is their number."""
    return [(torch.full((2, 3, 8, 8), i, dtype=torch.uint8), torch.full((2,), i)) for i in range(count)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_remote_equals_local(local: FrozenMixer, dtype: torch.dtype) -> None:
    """Masks and images of a remote mixer differ from those of the same mixer in this process by at most 1e-3."""
    images, labels = batch_of()
    images = images if dtype == torch.uint8 else images.div(255).to(dtype)

    with serving(predict_with(local), local.spec.rendering) as (_, target), connect(target) as remote:
        there = remote.mix(images, labels, seed=7)

    here = local.mix(images, labels, seed=7)
    assert here.masks.std() > 0.05  # else the next line would prove little
    torch.testing.assert_close(there.masks, here.masks, atol=1e-3, rtol=0)
    torch.testing.assert_close(there.images, here.images, atol=1e-3, rtol=0)
    assert torch.equal(there.lam, here.lam)
    torch.testing.assert_close((there.labels_a, there.labels_b), (here.labels_a, here.labels_b))


def test_image_replies_equal_local(local: FrozenMixer) -> None:
    """Mixed images made by the server differ from local ones by at most one step of a byte."""
    images, labels = batch_of()

    with serving(predict_with(local), local.spec.rendering) as (_, target), connect(target, reply="images") as remote:
        there = remote.mix(images, labels, seed=7)

    here = local.mix(images, labels, seed=7)
    torch.testing.assert_close(there.images, here.images, atol=1 / 255, rtol=0)
    torch.testing.assert_close(there.masks, here.masks, atol=1e-3, rtol=0)


def test_streams_agree(local: FrozenMixer) -> None:
    """A remote stream draws the plans a local one draws, batch by batch."""
    batches = [batch_of(seed=i) for i in range(5)]

    with serving(predict_with(local), local.spec.rendering) as (_, target), connect(target) as remote:
        there = list(remote.stream(batches, seed=3, depth=2))

    here = list(local.stream(batches, seed=3))
    for mixed, expected in zip(there, here, strict=True):
        assert torch.equal(mixed.lam, expected.lam)
        torch.testing.assert_close(mixed.images, expected.images, atol=1e-3, rtol=0)


def test_same_request_same_bits(remote: RemoteMixer) -> None:
    """The same request twice gives the same bits."""
    images, labels = batch_of()

    first, second = (remote.mix(images, labels, seed=7) for _ in range(2))

    assert torch.equal(first.images, second.images)


def test_labels_are_optional(remote: RemoteMixer) -> None:
    """Without labels there are none in the mixed batch."""
    images, _ = batch_of()

    mixed = remote.mix(images, lam=0.3, partner=torch.arange(6).flip(0))

    assert mixed.labels_a is None
    assert mixed.labels_b is None


def test_stream_keeps_order(servicer: ScriptedServicer, remote: RemoteMixer) -> None:
    """Mixed batches come in the order of the batches, also when a later answer comes first."""
    servicer.stalls = lambda call: first_pixel(call) == 0

    def batches() -> Iterator[Batch]:
        for i, batch in enumerate(numbered_batches(7)):
            if i == 3:
                servicer.wait_until(lambda s: s.num_calls == 3 and len(s.active) == 1)
                servicer.gate.set()
            yield batch

    labels = [mixed.labels_a for mixed in remote.stream(batches(), seed=1, depth=3)]

    assert [pair[0].item() for pair in labels if pair is not None] == list(range(7))


def test_stream_depth(servicer: ScriptedServicer, remote: RemoteMixer) -> None:
    """A stream has `depth` batches under way and never more."""
    servicer.stalls = lambda _call: True

    def batches() -> Iterator[Batch]:
        for i, batch in enumerate(numbered_batches(8)):
            if i == 3:
                servicer.wait_until(lambda s: len(s.active) == 3)
                servicer.gate.set()
            yield batch

    mixed = list(remote.stream(batches(), seed=1, depth=3))

    assert len(mixed) == 8
    assert servicer.peak_active == 3


def test_stream_sends_ahead(servicer: ScriptedServicer, target: str) -> None:
    """While the caller works on one batch, `depth` others are under way."""
    servicer.stalls = lambda call: first_pixel(call) > 0
    tally = Tally()

    with connect(target, observer=tally) as remote:
        next(remote.stream(numbered_batches(8), seed=1, depth=3))

    assert len(tally.sent_bytes) == 4


def test_closing_a_stream_cancels(servicer: ScriptedServicer, remote: RemoteMixer) -> None:
    """Closing a stream early cancels what is under way on the server."""
    servicer.stalls = lambda call: first_pixel(call) > 0
    stream = remote.stream(numbered_batches(8), seed=1, depth=3)
    next(stream)
    servicer.wait_until(lambda s: len(s.active) == 3)

    stream.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator

    assert servicer.wait_until(lambda s: not s.active)
    assert not servicer.gate.is_set()


def test_stream_of_nothing(target: str) -> None:
    """A stream of no batches is empty and does not connect; one without depth is refused."""
    remote = connect(target)

    assert list(remote.stream([], seed=1)) == []
    with pytest.raises(InputError, match="depth must be at least 1, got 0"):
        remote.stream([], seed=1, depth=0)


def test_new_version_is_logged_once(
    servicer: ScriptedServicer, remote: RemoteMixer, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights that change within a stream are accepted and logged once."""

    def batches() -> Iterator[Batch]:
        for i, batch in enumerate(numbered_batches(6)):
            servicer.version = "v1" if i < 3 else "v2"
            yield batch

    with caplog.at_level(logging.WARNING):
        mixed = list(remote.stream(batches(), seed=1, depth=1))

    assert len(mixed) == 6
    assert [record.getMessage().split()[0] for record in caplog.records] == ["mixer_version_changed"]


def test_deadline(servicer: ScriptedServicer, target: str) -> None:
    """A server that does not answer in time is a MixerTimeout, and is told to stop."""
    servicer.stalls = lambda _call: True

    with connect(target, config=ClientConfig(deadline_s=0.2)) as remote, pytest.raises(MixerTimeout, match=target):
        remote.mix(*batch_of(), seed=1)

    assert servicer.wait_until(lambda s: not s.active)


def test_cancel(servicer: ScriptedServicer, remote: RemoteMixer) -> None:
    """A cancelled mix raises MixerCancelled at once and is cancelled on the server."""
    servicer.stalls = lambda _call: True
    images, labels = batch_of()
    plan = resolve_plan(len(images), lam=None, partner=None, generator=generator_for(1))
    pending = remote.submit(images, labels, plan=plan)
    servicer.wait_until(lambda s: len(s.active) == 1)

    pending.cancel()

    with pytest.raises(MixerCancelled):
        pending.result()
    assert servicer.wait_until(lambda s: not s.active)


def test_close_cancels(servicer: ScriptedServicer, remote: RemoteMixer) -> None:
    """Closing the mixer ends what is under way, and later use is refused."""
    servicer.stalls = lambda _call: True
    images, labels = batch_of()
    plan = resolve_plan(len(images), lam=None, partner=None, generator=generator_for(1))
    pending = remote.submit(images, labels, plan=plan)
    servicer.wait_until(lambda s: len(s.active) == 1)

    remote.close()

    with pytest.raises(MixerCancelled):
        pending.result()
    with pytest.raises(MixerCancelled, match="closed; connect again"):
        remote.mix(images, labels, seed=1)


@pytest.mark.parametrize(
    ("images", "labels", "word"),
    [
        (torch.zeros(2, 1, 8, 8), None, "3, height, width"),
        (torch.zeros(3, 8, 8), None, "3, height, width"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int32), None, "torch.int32"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3, dtype=torch.int64), r"int64 \[2\]"),
    ],
)
def test_bad_batches_are_refused_here(target: str, images: Tensor, labels: Tensor | None, word: str) -> None:
    """A batch of a wrong rank, size or dtype is refused before anything is sent."""
    tally = Tally()

    with connect(target, observer=tally) as remote, pytest.raises(BadBatch, match=word):
        remote.mix(images, labels, seed=1)

    assert tally.sent_bytes == []


def test_pixels_out_of_range_are_refused(remote: RemoteMixer) -> None:
    """Floats that are not in [0, 1] are refused with their range."""
    with pytest.raises(BadBatch, match=r"\[0, 1\], got 0.0 to 2.0"):
        remote.mix(torch.tensor([0.0, 2.0]).repeat(3 * 32).view(1, 3, 8, 8), lam=0.5, partner=torch.tensor([0]))


def test_plan_of_another_size_is_refused(remote: RemoteMixer) -> None:
    """A plan that was drawn for another batch size is refused."""
    images, labels = batch_of(6)
    plan = resolve_plan(4, lam=None, partner=None, generator=generator_for(1))

    with pytest.raises(BadBatch, match=r"\[6\], got \[4\]"):
        remote.submit(images, labels, plan=plan)


def test_nonsense_answers(servicer: ScriptedServicer, remote: RemoteMixer) -> None:
    """Logits that are not numbers are the server's fault."""
    servicer.predict = lambda call: contrast_logits(call) * float("nan")

    with pytest.raises(MixerBroken, match="weights may be damaged"):
        remote.mix(*batch_of(), seed=1)


def test_oversized_messages(target: str) -> None:
    """A batch over the message limit is refused with the cure, and is not sent again."""
    tally = Tally()
    config = ClientConfig(max_message_bytes=10_000)

    with connect(target, config=config, observer=tally) as remote, pytest.raises(BadBatch, match="smaller batches"):
        remote.mix(*batch_of(), seed=1)

    assert tally.retries == []


def test_large_answers(target: str) -> None:
    """Mixed images over the 4 MB that gRPC allows by itself are received."""
    images = torch.zeros(32, 3, 224, 224, dtype=torch.uint8)

    with connect(target, reply="images") as remote:
        mixed = remote.mix(images, seed=1)

    assert mixed.images.shape == images.shape


def test_observer_counts_bytes(target: str) -> None:
    """The observer hears of the bytes that went and came."""
    tally = Tally()

    with connect(target, observer=tally) as remote:
        remote.mix(*batch_of(), seed=1)

    assert 6 * 3 * 32 * 32 < tally.sent_bytes[0] < 6 * 3 * 32 * 32 + 200
    assert 6 * 16 * 2 < tally.received_bytes[0] < 6 * 16 * 2 + 100


def test_mixers_are_described(remote: RemoteMixer) -> None:
    """The client can ask for one mixer and for all."""
    assert remote.info().name == "tiny"
    assert [info.name for info in remote.list_mixers()] == ["tiny"]


def test_pickled_mixer_connects_anew(remote: RemoteMixer) -> None:
    """A mixer that was used can be pickled for a spawned worker."""
    images, labels = batch_of()
    expected = remote.mix(images, labels, seed=2)

    with pickle.loads(pickle.dumps(remote)) as copy:
        mixed = copy.mix(images, labels, seed=2)

    assert torch.equal(mixed.images, expected.images)


@pytest.mark.gpu
def test_images_on_a_gpu(remote: RemoteMixer) -> None:
    """Images on a GPU are mixed there."""
    images, labels = batch_of()

    mixed = remote.mix(images.cuda(), labels.cuda(), seed=1)

    assert mixed.images.is_cuda
    torch.testing.assert_close(mixed.images.cpu(), remote.mix(images, labels, seed=1).images)
