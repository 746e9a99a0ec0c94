"""Subscribe and ListDatasets, over a real channel: nonsense is refused, and what is served stays in order."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from child_server import ChildServer
from fuzzing import ANSWER_S, REFUSALS, SEED, Code, Tally, check_sentence, fuzz, generator
from mutations import LARGE_NUMBERS, NUMBERS, spoil
from request_mutations import NAMES
from subscribing import wanted

from samix.mixer.v1 import dataset_pb2 as pb

PATH = ("datasets", 0.1)

SUBSCRIBE = "/samix.mixer.v1.DatasetService/Subscribe"
LIST = "/samix.mixer.v1.DatasetService/ListDatasets"
NUM_CALLS = 2
"""Open at once."""
ENDS = REFUSALS | {Code.CANCELLED, Code.FAILED_PRECONDITION, Code.ABORTED}
"""CANCELLED where no credits are left."""

SUBSCRIPTIONS = [
    wanted(batch_size=8),
    wanted(batch_size=3, num_consumers=2, consumer=1, drop_last=True, format=pb.BATCH_FORMAT_JPEG),
    wanted(mixer="tiny", batch_size=8, image_size=16, augmentation=pb.AUGMENTATION_CROP_FLIP),
]


@dataclass(frozen=True, kw_only=True)
class Script:
    """What a consumer says on a call, and when it leaves."""

    messages: list[bytes]
    """What it says."""
    num_answers: int | None
    """After how many messages of the server it cancels; None hears all of them."""


def draw_script(rng: random.Random, fingerprint: str) -> Script:
    """Draw a subscription and credits, some of which are spoilt, as are the messages they travel in."""
    subscription = pb.Subscription()
    subscription.CopyFrom(rng.choice(SUBSCRIPTIONS))
    subscription.token = str(rng.random())[:64]
    subscription.seed = rng.choice((0, 7, rng.getrandbits(64)))
    if rng.random() < 0.5:
        subscription.cursor.CopyFrom(_cursor(subscription, fingerprint, rng))
    if rng.random() < 0.6:
        rng.choice((_number, _number, _name, _enum, _cursor_number))(subscription, rng)
    messages = [pb.SubscribeRequest(subscription=subscription, credits=rng.choice((*NUMBERS, 100)))]
    messages += [pb.SubscribeRequest(credits=rng.choice(NUMBERS)) for _ in range(rng.choice((0, 0, 1, 50)))]
    if rng.random() < 0.1:
        rng.shuffle(messages)
    data = [message.SerializeToString() for message in messages * rng.choice((1, 1, 1, 1, 2))]
    if rng.random() < 0.4:
        at = rng.randrange(len(data))
        data[at] = spoil(data[at], rng)
    return Script(messages=data, num_answers=rng.choice((None, None, 0, 1, 2, 5)))


def _cursor(subscription: pb.Subscription, fingerprint: str, rng: random.Random) -> pb.Cursor:
    names = ("seed", "epoch", "batch_size", "num_consumers", "consumer", "drop_last")
    same = {name: getattr(subscription, name) for name in names}
    return pb.Cursor(fingerprint=fingerprint, num_batches=rng.choice((0, 1, 2, 1000)), **same)


def _number(subscription: pb.Subscription, rng: random.Random) -> None:
    names = ("batch_size", "image_size", "consumer", "num_consumers", "epoch", "jpeg_quality")
    setattr(subscription, rng.choice(names), rng.choice((*NUMBERS, rng.randint(0, 100))))


def _name(subscription: pb.Subscription, rng: random.Random) -> None:
    setattr(subscription, rng.choice(("dataset", "mixer", "version", "token")), rng.choice(NAMES))


def _enum(subscription: pb.Subscription, rng: random.Random) -> None:
    setattr(subscription, rng.choice(("format", "augmentation")), rng.choice((0, 1, 2, 3, 4, -1, 2**31 - 1, -(2**31))))


def _cursor_number(subscription: pb.Subscription, rng: random.Random) -> None:
    setattr(subscription.cursor, rng.choice(("num_batches", "seed")), rng.choice(LARGE_NUMBERS))
    subscription.cursor.version = rng.choice(("", *NAMES))


def perform(call: Any, script: Script, name: str) -> str:
    """Hear what the server says to a script, until it ends or the script leaves; returns how it ended."""
    has_cancelled = False
    missing_bytes, num_heard = 0, 0
    with suppress(grpc.RpcError):
        for data in _until(call, script.num_answers):
            message = pb.SubscribeResponse.FromString(data)
            assert message.HasField("terms") == (num_heard == 0), name
            assert message.HasField("batch") == (num_heard > 0 and not missing_bytes), name
            missing_bytes += message.pixel_bytes - len(message.chunk)
            assert missing_bytes >= 0, name
            num_heard += 1
        has_cancelled = call.cancel()
    code, sentence = call.code(), call.details() or ""
    assert code in ENDS, f"{code}: {sentence}; {name}"
    assert code is not Code.OK or not missing_bytes, name
    if code is not Code.OK and not has_cancelled:
        check_sentence(sentence, name)
    return code.name


def _until(call: Any, num_answers: int | None) -> Iterator[bytes]:
    for number, data in enumerate(call):
        if number == num_answers:
            return
        yield data


@pytest.mark.timeout(0)
def test_datasets(
    server: ChildServer, channel: grpc.Channel, ask_well: Callable[[], bytes], tally: Tally, shards: Path
):
    """Spoilt subscriptions are refused in time and with a sentence, others served; the server stays as it was."""
    subscribe, ask = channel.stream_stream(SUBSCRIBE), channel.unary_unary(LIST)
    (info,) = pb.ListDatasetsResponse.FromString(ask(b"", timeout=ANSWER_S)).datasets
    assert info.num_shards == len(list(shards.glob("*.tar")))
    opened: list[tuple[Any, Script, str, float]] = []

    def land() -> None:
        for call, script, name, started_s in opened:
            code = perform(call, script, name)
            tally.count(code, time.perf_counter() - started_s)
        opened.clear()

    def send(number: int) -> None:
        rng = generator(tally.path, number)
        script = draw_script(rng, info.fingerprint)
        name = f"input {number}, SAMIX_FUZZ_SEED={SEED}: {' '.join(data[:90].hex() for data in script.messages[:5])}"
        if rng.random() < 0.05:
            with suppress(grpc.RpcError):
                ask(script.messages[0], timeout=ANSWER_S)
        call = subscribe(iter(script.messages), timeout=ANSWER_S)
        opened.append((call, script, name, time.perf_counter()))
        if len(opened) == NUM_CALLS:
            land()

    fuzz(server, tally, ask_well, send, land)
