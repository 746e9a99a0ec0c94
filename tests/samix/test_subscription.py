"""Subscriptions against a real dataset server that does as it is told: what a caller gets, and in which order."""

import gc
import json
import multiprocessing
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
import torch
from scripted_datasets import LAM, LOGIT, Break, ScriptedDatasets, grey, serving_datasets
from scripted_server import Tally

from samix import connect
from samix.client.config import ClientConfig, RetryPolicy
from samix.client.datasets.batch import ReadyBatch
from samix.client.datasets.share import Format
from samix.client.datasets.subscription import Subscription
from samix.client.remote import RemoteMixer
from samix.errors import (
    BadBatch,
    ConsumerTaken,
    DataLost,
    InputError,
    MixerBroken,
    MixerCancelled,
    MixerError,
    MixerNotFound,
    MixerOverloaded,
    MixerTimeout,
    MixerUnavailable,
    StaleCursor,
)
from samix.mixer.v1 import dataset_pb2 as pb
from samix.mixing.batch import MixedBatch

SIDE = 16
QUICK = ClientConfig(retry=RetryPolicy(attempts=1, initial_backoff_s=0.001, max_backoff_s=0.01))
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
KEYS = [str(sample) for sample in range(20)]


@pytest.fixture
def running() -> Iterator[tuple[ScriptedDatasets, str]]:
    servicer = ScriptedDatasets()
    with serving_datasets(servicer) as target:
        yield servicer, target


@pytest.fixture
def remote(running: tuple[ScriptedDatasets, str]) -> Iterator[RemoteMixer]:
    with connect(running[1], config=QUICK) as mixer:
        yield mixer


def plain(remote: RemoteMixer, **options: Any) -> Subscription:
    return remote.subscribe("made", **({"mix": False, "batch_size": 4, "image_size": SIDE} | options))


def keys_of(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def test_unmixed_batches_come_in_order(remote: RemoteMixer):
    """Without a mixer a batch holds the pictures as they are, whole and in order, in the form of a mixed one."""
    batches = list(plain(remote, batch_size=8))

    assert [batch.keys for batch in batches] == [tuple(KEYS[:8]), tuple(KEYS[8:16]), tuple(KEYS[16:])]
    first = batches[0]
    expected = torch.stack([torch.from_numpy(grey(sample, SIDE)) for sample in range(8)])
    assert torch.equal(first.pixels, expected)
    assert torch.equal(first.images, expected / 255)
    assert first.labels_a.tolist() == first.labels_b.tolist() == list(range(8))
    assert first.lam.tolist() == [1.0] * 8
    assert torch.equal(first.masks, torch.ones(8, 1, SIDE, SIDE))
    assert (first.partner_keys, first.skipped, len(first)) == (first.keys, (), 8)


def test_mixed_batches_are_rendered(running: tuple[ScriptedDatasets, str]):
    """With the mixer of `connect` a batch has both labels, the shares and the masks of its logits."""
    with connect(running[1], mixer="tiny") as remote:
        first = next(remote.subscribe("made", batch_size=4, image_size=SIDE))

    assert running[0].asked[0].mixer == "tiny"
    assert first.labels_b.tolist() == [1, 2, 3, 0]
    assert first.partner_keys == ("1", "2", "3", "0")
    assert first.lam.tolist() == [LAM] * 4
    mixed = first.mixed()
    assert isinstance(mixed, MixedBatch)
    assert mixed.masks.shape == (4, 1, SIDE, SIDE)
    assert torch.allclose(mixed.masks, torch.tensor(LOGIT).sigmoid())


@pytest.mark.parametrize(
    ("batch_format", "dtype", "error"), [("float16", torch.float16, 1e-3), ("jpeg", torch.uint8, 2)]
)
def test_other_formats_show_the_same_pictures(
    remote: RemoteMixer, batch_format: Format, dtype: torch.dtype, error: float
):
    """float16 and JPEG batches arrive decoded, in order, and as near as they can be."""
    first, *others = plain(remote, format=batch_format)

    expected = torch.stack([torch.from_numpy(grey(sample, SIDE)) for sample in range(4)]) / 255
    assert first.pixels.dtype == dtype
    assert (first.images - expected).abs().max() <= (error if error < 1 else error / 255)
    assert keys_of([first, *others]) == KEYS


def test_only_as_many_are_sent_as_the_caller_has_room_for(running: tuple[ScriptedDatasets, str], remote: RemoteMixer):
    """The server is allowed `depth` batches ahead of the caller, and one more for each that is taken."""
    servicer = running[0]
    subscription = plain(remote, batch_size=1, depth=3)

    next(subscription)
    next(subscription)

    assert servicer.wait_until(lambda s: s.num_sent == 5)
    assert servicer.num_granted == 5


@pytest.mark.parametrize(
    "status",
    [UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, MixerOverloaded("full", 0.01)],
    ids=str,
)
@pytest.mark.parametrize("after", [0, 2, 5])
def test_a_lost_call_repeats_and_skips_nothing(
    running: tuple[ScriptedDatasets, str], remote: RemoteMixer, after: int, status: Any
):
    """However a call is lost, the next one goes on behind the last batch that came, as the same consumer."""
    servicer = running[0]
    servicer.breaks.extend([Break(after, status), Break(0, status), Break(0, UNAVAILABLE)])

    keys = keys_of(plain(remote))

    assert keys == KEYS
    assert [asked.cursor.num_batches for asked in servicer.asked] == [0, after, after, after]
    assert len({asked.token for asked in servicer.asked}) == 1


def test_a_call_lost_within_a_batch_gives_it_whole(running: tuple[ScriptedDatasets, str], remote: RemoteMixer):
    """A batch of which only some chunks came is asked for again; no half of it is ever seen."""
    running[0].breaks.append(Break(2, UNAVAILABLE, within=True))

    batches = list(plain(remote))

    assert keys_of(batches) == KEYS
    assert torch.equal(batches[2].pixels, torch.stack([torch.from_numpy(grey(i, SIDE)) for i in range(8, 12)]))


def test_a_server_that_restarts_is_found_again():
    """A server that is stopped at once and started anew at its port costs no batch."""
    with ExitStack() as clients:
        with serving_datasets(ScriptedDatasets()) as target:
            subscription = plain(clients.enter_context(connect(target, config=QUICK)), depth=1)
            first = next(subscription)

        with serving_datasets(ScriptedDatasets(), port=int(target.split(":")[1])):
            others = list(subscription)

    assert keys_of([first, *others]) == KEYS


def test_retries_are_told(running: tuple[ScriptedDatasets, str]):
    """Whoever observes the client hears of each new connection, and why."""
    running[0].breaks.extend([Break(1, UNAVAILABLE), Break(1, MixerOverloaded("full", 0.01))])
    tally = Tally()

    with connect(running[1], config=QUICK, observer=tally) as remote:
        keys_of(plain(remote))

    assert tally.retries == ["unavailable", "overloaded"]


def test_a_state_goes_on_in_another_life(running: tuple[ScriptedDatasets, str], remote: RemoteMixer):
    """What state_dict gave, through JSON, goes on behind what was handed out, whatever had come beyond it."""
    servicer = running[0]
    with plain(remote) as subscription:
        first = next(subscription)
        assert servicer.wait_until(lambda s: s.num_sent == 5)
        state = json.loads(json.dumps(subscription.state_dict()))

    revived = plain(remote)
    revived.load_state_dict(state)
    others = list(revived)

    assert keys_of([first, *others]) == KEYS
    assert servicer.asked[1].cursor.num_batches == 1
    assert servicer.asked[1].token == servicer.asked[0].token
    assert subscription.cursor == first.cursor == state["cursor"]


def test_a_cursor_alone_goes_on_as_another_consumer(running: tuple[ScriptedDatasets, str], remote: RemoteMixer):
    """`batch.cursor` is enough to go on; the token is a new one."""
    with plain(remote) as subscription:
        second = [next(subscription), next(subscription)][1]

    others = list(plain(remote, cursor=second.cursor))

    assert keys_of(others) == KEYS[8:]
    assert running[0].asked[1].token != running[0].asked[0].token


def test_a_state_before_the_first_batch_starts_the_epoch(remote: RemoteMixer):
    """A subscription that handed nothing out has a state as well."""
    subscription = plain(remote)

    subscription.load_state_dict(plain(remote).state_dict())

    assert keys_of(subscription) == KEYS


def test_the_end_of_an_epoch_is_a_place(remote: RemoteMixer):
    """Going on behind the last batch gives none, rather than the epoch again."""
    subscription = plain(remote)
    list(subscription)

    revived = plain(remote, cursor=subscription.cursor)

    assert list(revived) == []
    assert next(subscription, None) is None


def test_the_number_of_batches_is_known_before_the_first(remote: RemoteMixer):
    """`num_batches` is that of the whole epoch, also for who goes on in its middle."""
    with plain(remote) as subscription:
        assert subscription.num_batches() == 5
        cursor = next(subscription).cursor

    with plain(remote, cursor=cursor) as revived:
        assert revived.num_batches() == 5


@pytest.mark.parametrize(
    "error",
    [MixerNotFound, StaleCursor, ConsumerTaken, DataLost, BadBatch, MixerBroken],
    ids=lambda kind: kind.__name__,
)
def test_what_cannot_be_mended_is_raised(
    running: tuple[ScriptedDatasets, str], remote: RemoteMixer, error: type[MixerError]
):
    """A refusal is raised as what it is, after the batches that came before it, and again when asked again."""
    servicer = running[0]
    servicer.breaks.append(Break(2, error("this is why")))
    subscription = plain(remote)

    came = [next(subscription), next(subscription)]
    for _ in range(2):
        with pytest.raises(error, match=f"{running[1]}: this is why"):
            next(subscription)

    assert keys_of(came) == KEYS[:8]
    assert len(servicer.asked) == 1


def test_a_server_that_is_gone_is_raised_in_time():
    """With nobody at the address the caller hears UNAVAILABLE once its patience ends."""
    with connect("127.0.0.1:1", config=QUICK) as remote, pytest.raises(MixerUnavailable, match=r"within 0\.3 s"):
        next(plain(remote, timeout_s=0.3))


def test_a_silent_server_is_raised_in_time(running: tuple[ScriptedDatasets, str], remote: RemoteMixer):
    """A server that says nothing more ends the wait of its caller, not before what had come was taken."""
    running[0].breaks.append(Break(1, None))
    subscription = plain(remote, timeout_s=0.3)

    assert next(subscription).keys == tuple(KEYS[:4])
    with pytest.raises(MixerTimeout, match=r"no batch of 'made' .* within 0.3 s"):
        next(subscription)


def test_a_silent_replica_is_left_for_another():
    """Of several servers, one that says nothing more is left in time; the other one goes on behind the last batch."""
    replicas = [ScriptedDatasets(), ScriptedDatasets()]
    for replica in replicas:
        replica.breaks.append(Break(1, None))
    with ExitStack() as running:
        target = ",".join(running.enter_context(serving_datasets(replica)) for replica in replicas)
        keys = keys_of(plain(running.enter_context(connect(target, config=QUICK)), timeout_s=1.0))

    assert keys == KEYS
    assert sum(len(replica.asked) for replica in replicas) == 3


def test_replicas_take_over_by_turns():
    """A replica that is lost is followed by the other one, which goes on behind the last batch."""
    replicas = [ScriptedDatasets(breaks=deque([Break(2, UNAVAILABLE)])) for _ in range(2)]
    with ExitStack() as running:
        target = ",".join(running.enter_context(serving_datasets(replica)) for replica in replicas)
        keys = keys_of(plain(running.enter_context(connect(target, config=QUICK))))

    assert keys == KEYS
    assert all(replica.asked for replica in replicas)


def announce_more(message: pb.SubscribeResponse) -> None:
    message.pixel_bytes += 1


def repeat_terms(message: pb.SubscribeResponse) -> None:
    message.terms.num_batches = 5


def grow(message: pb.SubscribeResponse) -> None:
    message.batch.shape[2] += 1


def skip_one(message: pb.SubscribeResponse) -> None:
    message.batch.cursor.num_batches += 1


def lose_key(message: pb.SubscribeResponse) -> None:
    del message.batch.keys[0]


def lose_label(message: pb.SubscribeResponse) -> None:
    del message.batch.labels[0]


def pair_twice(message: pb.SubscribeResponse) -> None:
    message.batch.partner[0] = message.batch.partner[1]


def spoil_lam(message: pb.SubscribeResponse) -> None:
    message.batch.lam[0] = float("nan")


def cut_masks(message: pb.SubscribeResponse) -> None:
    message.batch.mask_logits = message.batch.mask_logits[:-1]


def spoil_masks(message: pb.SubscribeResponse) -> None:
    message.batch.mask_logits = b"\xff\x7f" * 16


def drop_batch(message: pb.SubscribeResponse) -> None:
    message.ClearField("batch")


@pytest.mark.parametrize(
    "spoil",
    [
        *(announce_more, repeat_terms, grow, skip_one, lose_key, lose_label),
        *(pair_twice, spoil_lam, cut_masks, spoil_masks, drop_batch),
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_a_server_that_sends_nonsense_is_not_believed(running: tuple[ScriptedDatasets, str], spoil: Any):
    """A batch that is not the one that was asked for is an error of the server's, and never handed out."""

    def spoiled(message: pb.SubscribeResponse) -> pb.SubscribeResponse:
        if message.HasField("batch"):
            spoil(message)
        return message

    running[0].spoil = spoiled
    with connect(running[1], mixer="tiny", config=QUICK) as remote:
        subscription = remote.subscribe("made", batch_size=4, image_size=SIDE)

        with pytest.raises(MixerBroken, match="cannot be read"):
            next(subscription)


def test_an_epoch_that_ends_early_is_not_believed(running: tuple[ScriptedDatasets, str], remote: RemoteMixer):
    """OK before the last batch is an error, not the end of the epoch."""

    def promise(message: pb.SubscribeResponse) -> pb.SubscribeResponse:
        if message.HasField("terms"):
            message.terms.num_batches += 1
        return message

    running[0].spoil = promise

    with pytest.raises(MixerBroken, match="ended after 5 batches, too early"):
        list(plain(remote))


def test_a_damaged_jpeg_is_not_believed(running: tuple[ScriptedDatasets, str], remote: RemoteMixer):
    """Bytes that are no JPEG are an error of the server's."""

    def garble(message: pb.SubscribeResponse) -> pb.SubscribeResponse:
        if message.chunk:
            message.chunk = bytes(len(message.chunk))
        return message

    running[0].spoil = garble

    with pytest.raises(MixerBroken, match="a JPEG of the batch cannot be decoded"):
        next(plain(remote, format="jpeg"))


def test_batches_without_any_sample_are_passed_over(running: tuple[ScriptedDatasets, str], remote: RemoteMixer):
    """A batch none of whose samples could be read is not handed out; its keys stand with the next one."""
    running[0].empty = frozenset({1, 2})

    batches = list(plain(remote, depth=1))

    assert [batch.keys for batch in batches] == [tuple(KEYS[:4]), tuple(KEYS[12:16]), tuple(KEYS[16:])]
    assert [batch.skipped for batch in batches] == [(), tuple(KEYS[4:12]), ()]


def test_closing_ends_a_wait(running: tuple[ScriptedDatasets, str], remote: RemoteMixer):
    """Another thread may close a subscription whose caller waits; the caller hears it, and not the end of an epoch."""
    running[0].breaks.append(Break(0, None))
    subscription = plain(remote)
    threading.Timer(0.05, subscription.close).start()

    with pytest.raises(MixerCancelled, match="was closed"):
        next(subscription)

    with pytest.raises(MixerCancelled):
        next(subscription)


def test_closing_the_mixer_ends_its_subscriptions(running: tuple[ScriptedDatasets, str], remote: RemoteMixer):
    """Who closes the connection closes what goes over it."""
    running[0].breaks.append(Break(1, None))
    subscription = plain(remote)
    next(subscription)
    threading.Timer(0.05, remote.close).start()

    with pytest.raises(MixerCancelled, match="was closed"):
        next(subscription)


def test_a_forgotten_subscription_leaves_no_thread(running: tuple[ScriptedDatasets, str]):
    """A loop that is left without closing anything leaves the server, and no thread receives for nobody."""
    servicer = running[0]
    mixer = connect(running[1], config=QUICK)
    for _ in plain(mixer, batch_size=1, depth=1):
        break
    feeds = [thread for thread in threading.enumerate() if thread.name == "dataset-feed"]

    gc.collect()
    for feed in feeds:
        feed.join(20)

    assert not any(feed.is_alive() for feed in feeds)
    assert servicer.num_sent <= 2
    mixer.close()


def test_memory_of_batches_is_used_again(remote: RemoteMixer):
    """Pixels lie in the buffer that they were received into, and it is used again once the batch is gone."""
    places = set()
    for batch in plain(remote, batch_size=1, depth=1):
        places.add(batch.pixels.data_ptr())
        del batch

    assert len(places) <= 4


def _next_keys(subscription: Subscription, answers: Any) -> None:
    try:
        answers.put(next(subscription).keys)
    except InputError as error:
        answers.put(str(error))


def test_a_fork_is_refused(remote: RemoteMixer):
    """A subscription that was begun before a fork says in the child where to subscribe instead."""
    subscription = plain(remote)
    next(subscription)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    child = context.Process(target=_next_keys, args=(subscription, answers))
    child.start()
    child.join(20)

    assert "was used before this process was forked; connect in the worker" in answers.get()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": True}, r"connect\(..., mixer=NAME\), or subscribe\(..., mix=False\)"),
        ({"batch_size": 0}, "batch_size must be a whole number in 1..65536, got 0"),
        ({"image_size": 2.5}, "image_size must be a whole number in 1..16384, got 2.5"),
        ({"seed": -1}, "seed must be a whole number in 0.*, got -1"),
        ({"consumer": 2, "num_consumers": 2}, r"consumer must be a whole number in 0\.\.1, got 2"),
        ({"format": "png"}, "format must be one of uint8, float16, jpeg, got 'png'"),
        ({"augmentation": "none"}, "augmentation must be one of crop_flip, center, got 'none'"),
        ({"depth": 0}, "depth must lie in 1..1024, got 0"),
        ({"timeout_s": 0}, "timeout_s must be positive and finite, got 0"),
        ({"cursor": {"epoch": 1}}, "give `batch.cursor` as it was"),
    ],
)
def test_options_that_cannot_be_are_refused(remote: RemoteMixer, options: dict[str, Any], message: str):
    """A wrong option is refused before anything is sent, with its value and the cure."""
    with pytest.raises(InputError, match=message):
        plain(remote, **options)


def test_a_state_of_another_epoch_or_too_late_is_refused(remote: RemoteMixer):
    """A state is loaded by a subscription of its epoch, before its first batch."""
    begun = plain(remote)
    next(begun)

    with pytest.raises(InputError, match="has begun"):
        begun.load_state_dict(begun.state_dict())
    with pytest.raises(InputError, match="of epoch 0, the subscription of 1"):
        plain(remote, epoch=1).load_state_dict(begun.state_dict())


def test_datasets_are_listed(remote: RemoteMixer):
    """`list_datasets` names what the server reads."""
    (dataset,) = remote.list_datasets()

    assert (dataset.name, dataset.num_samples) == ("made", 20)


def test_a_batch_moves_as_it_came(remote: RemoteMixer):
    """`to` moves what came, uint8, and makes the rest there; keys and place stay."""
    batch = next(plain(remote))

    moved = batch.to("cpu")

    assert isinstance(moved, ReadyBatch)
    assert (moved.keys, moved.cursor) == (batch.keys, batch.cursor)
    assert moved.pixels.dtype == torch.uint8
    assert torch.equal(moved.images, batch.images)
