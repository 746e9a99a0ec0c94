"""What a client makes of a stream that ends, stalls, or on which a server says what it should not."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import grpc
import numpy as np
import pytest
import torch
from framing import whole
from scripted_server import PATIENCE_S, RENDERING, ScriptedServicer, contrast_logits, serving, start_server

from samix.client import stream as stream_module
from samix.client.attempts import Attempt, Outcome
from samix.client.channel import Connection
from samix.client.config import ClientConfig, RetryPolicy, StreamPolicy
from samix.client.remote import connect
from samix.errors import BadBatch, ConfigError, MixerBroken, MixerCancelled, MixerError, MixerTimeout, MixerUnavailable
from samix.framing import Framed
from samix.mixer.v1 import mixer_pb2 as pb
from samix.wire import MixCall, MixReply, encode_request, encode_response

Messages = Iterator[pb.MixStreamRequest]
Talk = Callable[[Messages, grpc.ServicerContext], Iterator[pb.MixStreamResponse]]

IMAGES = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).remainder(256).byte()
QUICK = ClientConfig(deadline_s=PATIENCE_S, retry=RetryPolicy(attempts=3, initial_backoff_s=0.01))
ONCE = ClientConfig(deadline_s=PATIENCE_S, retry=RetryPolicy(attempts=1))
TERMS = pb.MixStreamResponse(terms=pb.StreamTerms(credits=4, max_batches=100, max_chunk_bytes=1 << 20))
SMALL, LARGE = 2, 20 << 20  # images of 1 pixel
EXPIRED_S = 0.01


class TalkingServicer(ScriptedServicer):
    """Lets a test say what is said on its streams, the first of them or all."""

    def __init__(self, *talks: Talk) -> None:
        super().__init__(contrast_logits)
        self._talks = talks

    def MixStream(self, request_iterator: Messages, context: grpc.ServicerContext) -> Iterator[pb.MixStreamResponse]:
        with self.changed:
            talk = self._talks[min(self.num_streams, len(self._talks) - 1)]
            self.num_streams += 1
            self.changed.notify_all()
        yield from talk(request_iterator, context)


@contextmanager
def talking(*talks: Talk) -> Iterator[tuple[TalkingServicer, str]]:
    servicer = TalkingServicer(*talks)
    server, port = start_server(servicer)
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def read_batches(messages: Messages) -> Iterator[tuple[int, bool]]:
    """Yield the number of each batch and whether it came whole; a batch may only begin once the last one is over."""
    number, missing = 0, 0
    for message in messages:
        if message.HasField("request"):
            assert (message.sequence, missing) == (number + 1, 0), "begins before the last one is over"
            number, missing = message.sequence, message.pixel_bytes
        if message.cancel and message.sequence == number and missing:
            missing = 0
            yield number, False
        elif not message.cancel:
            missing -= len(message.chunk)
            if not missing:
                yield number, True


def answer(sequence: int, num_images: int = 2) -> pb.MixStreamResponse:
    logits = np.zeros((num_images, 1, 4, 4), np.float16)
    reply = MixReply(mixer="tiny", version="v1", rendering=RENDERING, mask_logits=logits)
    return pb.MixStreamResponse(sequence=sequence, response=whole(encode_response(reply)))


def refused(sequence: int, code: grpc.StatusCode = grpc.StatusCode.CANCELLED) -> pb.MixStreamResponse:
    return pb.MixStreamResponse(sequence=sequence, refusal=pb.Refusal(code=code.value[0], message="as told"))


def answer_all(messages: Messages, _context: grpc.ServicerContext) -> Iterator[pb.MixStreamResponse]:
    """Do what a server should."""
    yield TERMS
    for number, is_whole in read_batches(messages):
        yield answer(number) if is_whole else refused(number)


def request_of(num_pixels: int) -> Framed[pb.MixRequest]:
    """A request of two images, as many pixels long."""
    pixels = np.zeros((2, 3, 1, num_pixels // 2), np.uint8)
    return encode_request(MixCall(mixer="", pixels=pixels, lam=np.ones(2, np.float32), partner=np.array([1, 0])))


def outcome_of(attempt: Attempt) -> Outcome:
    outcome: Future[Outcome] = Future()
    attempt.add_done_callback(lambda done: outcome.set_result(done.outcome))
    return outcome.result(PATIENCE_S)


@contextmanager
def stalled(target: str, go_on: threading.Event, begun: threading.Event) -> Iterator[tuple[Connection, Attempt]]:
    """A connection whose server reads no further than the start of a large batch."""
    connection = Connection(target, QUICK)
    try:
        attempt = connection.start("Mix", request_of(LARGE), EXPIRED_S)
        assert begun.wait(PATIENCE_S)
        yield connection, attempt
    finally:
        go_on.set()
        connection.close()


def stall(begun: threading.Event, go_on: threading.Event, messages: Messages) -> Messages:
    """Read one message, and the others once it may go on."""
    yield next(messages)
    begun.set()
    go_on.wait(PATIENCE_S)
    yield from messages


def test_a_batch_that_expires_while_it_is_sent() -> None:
    """A batch whose deadline passes in the middle of its upload costs the next one on its stream nothing."""
    begun, go_on = threading.Event(), threading.Event()

    def talk(messages: Messages, context: grpc.ServicerContext) -> Iterator[pb.MixStreamResponse]:
        return answer_all(stall(begun, go_on, messages), context)

    with talking(talk) as (servicer, target), stalled(target, go_on, begun) as (connection, late):
        next_one = connection.start("Mix", request_of(SMALL), PATIENCE_S)
        expired = outcome_of(late)
        go_on.set()
        answered = outcome_of(next_one)

    assert isinstance(expired, MixerTimeout)
    assert isinstance(answered, Framed)
    assert servicer.num_streams == 1


def test_a_batch_that_is_cancelled_while_it_is_sent() -> None:
    """Nor does one that is given up, however long those take who hear of it first."""
    begun, go_on, may_return = threading.Event(), threading.Event(), threading.Event()

    def talk(messages: Messages, context: grpc.ServicerContext) -> Iterator[pb.MixStreamResponse]:
        return answer_all(stall(begun, go_on, messages), context)

    with (
        talking(talk) as (_, target),
        ThreadPoolExecutor(1) as threads,
        stalled(target, go_on, begun) as (connection, given_up),
    ):
        next_one = connection.start("Mix", request_of(SMALL), PATIENCE_S)
        is_heard = threading.Event()
        given_up.add_done_callback(lambda _: (is_heard.set(), may_return.wait(PATIENCE_S)))
        cancelling = threads.submit(given_up.cancel)
        assert is_heard.wait(PATIENCE_S)
        go_on.set()
        answered = outcome_of(next_one)
        may_return.set()
        cancelling.result(PATIENCE_S)

    assert isinstance(given_up.outcome, MixerCancelled | MixerTimeout)
    assert isinstance(answered, Framed)


def test_a_stream_that_ends_at_once() -> None:
    """A server that ends every stream without a word is tried as often as the policy says, not as fast as can be."""
    with (
        talking(lambda _messages, _context: iter(())) as (servicer, target),
        connect(target, config=QUICK) as remote,
        pytest.raises(MixerUnavailable, match="ended before"),
    ):
        remote.mix(IMAGES, seed=1)

    assert servicer.num_streams == QUICK.retry.attempts


def test_a_stream_that_is_ending_gets_no_more() -> None:
    """After `is_ending` nothing new is sent on a stream: what was not sent yet goes over the next one."""
    taken: list[int] = []

    def end_after_one(messages: Messages, _context: grpc.ServicerContext) -> Iterator[pb.MixStreamResponse]:
        yield pb.MixStreamResponse(terms=pb.StreamTerms(credits=1))
        for number, _ in read_batches(messages):
            taken.append(number)
            yield pb.MixStreamResponse(is_ending=True)
            yield answer(number)

    with (
        talking(end_after_one, answer_all) as (servicer, target),
        connect(target, config=ONCE) as remote,
        ThreadPoolExecutor(4) as threads,
    ):
        mixed = list(threads.map(lambda seed: remote.mix(IMAGES, seed=seed), range(4)))

    assert len(mixed) == 4
    assert taken == [1]
    assert servicer.num_streams == 2


def test_a_server_that_only_ends_streams() -> None:
    """A server that wants every stream to end, as one that drains, is unavailable; its client does not spin."""

    def drain(messages: Messages, _context: grpc.ServicerContext) -> Iterator[pb.MixStreamResponse]:
        yield TERMS
        yield pb.MixStreamResponse(is_ending=True)
        for number, _ in read_batches(messages):
            yield refused(number, grpc.StatusCode.UNAVAILABLE)

    with (
        talking(drain) as (servicer, target),
        connect(target, config=QUICK) as remote,
        pytest.raises(MixerUnavailable),
    ):
        remote.mix(IMAGES, seed=1)

    assert servicer.num_streams == QUICK.retry.attempts


@pytest.mark.parametrize("max_batches", [1, 100])
def test_a_server_that_never_hangs_up(max_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is half-closed, after its last batch or when it idles, is ended here if the server does not."""
    monkeypatch.setattr(stream_module, "_HANG_UP_S", 0.05)
    is_over = threading.Event()

    def stay(messages: Messages, context: grpc.ServicerContext) -> Iterator[pb.MixStreamResponse]:
        context.add_callback(is_over.set)
        yield from answer_all(messages, context)
        is_over.wait(PATIENCE_S)

    config = ClientConfig(deadline_s=PATIENCE_S, streams=StreamPolicy(max_batches=max_batches, idle_s=0.05))
    with talking(stay) as (_, target), connect(target, config=config) as remote:
        remote.mix(IMAGES, seed=1)

        assert is_over.wait(PATIENCE_S)


@pytest.mark.parametrize("terms", [pb.StreamTerms(), pb.StreamTerms(credits=1, max_batches=1, max_chunk_bytes=1)])
def test_meagre_terms(terms: pb.StreamTerms) -> None:
    """Terms of zeros, or of the least there can be, are enough to be served."""

    def talk(messages: Messages, _context: grpc.ServicerContext) -> Iterator[pb.MixStreamResponse]:
        yield pb.MixStreamResponse(terms=terms)
        for number, _ in read_batches(messages):
            yield answer(number)

    with talking(talk) as (_, target), connect(target, config=ONCE) as remote:
        mixed = [remote.mix(IMAGES[:, :, :4, :4], seed=seed) for seed in range(3)]

    assert len(mixed) == 3


def oversized(sequence: int) -> pb.MixStreamResponse:
    message = answer(sequence)
    message.pixel_bytes = 1 << 60
    return message


def too_much(sequence: int) -> pb.MixStreamResponse:
    message = answer(sequence)
    message.pixel_bytes, message.chunk = 2, b"123"
    return message


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        (lambda number: answer(number + 1), "batch 2 was answered, 1 is next"),
        (lambda number: answer(1 << 63 | number), "was answered, 1 is next"),
        (oversized, "announced, over max_message_bytes"),
        (too_much, "is not part of its answer"),
        (lambda number: pb.MixStreamResponse(sequence=number, chunk=b"1"), "is not part of its answer"),
        (lambda number: pb.MixStreamResponse(sequence=number), "is not part of its answer"),
        (lambda number: pb.MixStreamResponse(sequence=number, refusal=pb.Refusal()), "no details"),
        (lambda number: pb.MixStreamResponse(sequence=number, refusal=pb.Refusal(code=99)), "no details"),
        (lambda number: answer(number, num_images=3), "bytes of masks"),
    ],
)
def test_nonsense(says: Callable[[int], pb.MixStreamResponse], sentence: str) -> None:
    """An answer that makes no sense is MixerBroken at once, and the next mix is answered."""

    def talk(messages: Messages, _context: grpc.ServicerContext) -> Iterator[pb.MixStreamResponse]:
        yield TERMS
        for number, _ in read_batches(messages):
            yield says(number) if number == 1 else answer(number)

    with talking(talk, answer_all) as (_, target), connect(target, config=QUICK) as remote:
        with pytest.raises(MixerBroken, match=sentence):
            remote.mix(IMAGES, seed=1)
        mixed = remote.mix(IMAGES, seed=1)

    assert mixed.images.shape == IMAGES.shape


def test_an_answer_nobody_asked_for() -> None:
    """A server that answers before it was asked, and without terms, is MixerBroken."""
    with (
        talking(lambda _messages, _context: iter([answer(1)])) as (_, target),
        connect(target, config=QUICK) as remote,
        pytest.raises(MixerBroken, match="batch 1 was answered"),
    ):
        remote.mix(IMAGES, seed=1)


def test_a_large_batch_costs_its_neighbours_nothing() -> None:
    """A batch over the message limit is refused before it is sent, with both numbers, and the stream goes on."""
    config = ClientConfig(deadline_s=PATIENCE_S, max_message_bytes=10_000)

    with serving(contrast_logits) as (servicer, target), connect(target, config=config) as remote:
        remote.mix(IMAGES, seed=1)
        with pytest.raises(BadBatch, match=r"has 2\d{4} bytes, max_message_bytes is 10000; send smaller batches"):
            remote.mix(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), seed=1)
        remote.mix(IMAGES, seed=1)

    assert (servicer.num_streams, servicer.num_calls) == (1, 2)


def test_many_threads_share_a_client() -> None:
    """Each of many threads that mix with one client has the mix of its own batch, over streams of few batches each."""
    policy = StreamPolicy(max_batches=3)
    config = ClientConfig(deadline_s=PATIENCE_S, streams=policy)
    numbers = range(96)

    def mean(number: int) -> float:
        images = torch.full((2, 3, 8, 8), number, dtype=torch.uint8)
        return float(remote.mix(images, seed=number).images.mean())

    with (
        serving(contrast_logits) as (servicer, target),
        connect(target, config=config) as remote,
        ThreadPoolExecutor(8) as threads,
    ):
        means = list(threads.map(mean, numbers))

    assert means == pytest.approx([number / 255 for number in numbers])
    assert servicer.num_calls == len(numbers)
    assert servicer.num_streams == len(numbers) / policy.max_batches


def test_deadlines_longer_than_the_wire_can_say() -> None:
    """A deadline of years works; one without end is refused."""
    with serving(contrast_logits) as (_, target), connect(target, config=ClientConfig(deadline_s=1e8)) as remote:
        mixed = remote.mix(IMAGES, seed=1)

    assert mixed.images.shape == IMAGES.shape
    with pytest.raises(ConfigError, match="deadline_s must be positive and finite, got inf"):
        ClientConfig(deadline_s=float("inf"))


def test_closing_while_many_threads_mix() -> None:
    """Whoever mixes while the client is closed gets a mix or MixerCancelled, and soon."""
    outcomes: list[type] = []

    def mix_until_closed(connected: Callable[[], object]) -> None:
        while True:
            try:
                connected()
            except MixerError as error:
                outcomes.append(type(error))
                return

    with (
        serving(contrast_logits) as (servicer, target),
        connect(target, config=QUICK) as remote,
        ThreadPoolExecutor(4) as threads,
    ):
        for _ in range(4):
            threads.submit(mix_until_closed, partial(remote.mix, IMAGES, seed=1))
        assert servicer.wait_until(lambda s: s.num_calls >= 20)
        remote.close()

    assert outcomes == [MixerCancelled] * 4
