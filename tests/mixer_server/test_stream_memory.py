"""What streams hold of a server's memory, and when they let go of it."""

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from serving import WAIT_S, Gate, connect, random_call, serve
from test_streams import Talk, talking

from mixer_server.app import MixerServer
from mixer_server.front.stream_batch import CHUNK_BYTES
from mixer_server.front.streaming import STREAM_BYTES
from mixer_server.scheduling.batcher import BatchingConfig
from mixer_server.scheduling.memory import resident_bytes
from samix.errors import MixerOverloaded
from samix.mixing.frozen import FrozenMixer
from samix.status import from_rpc_error
from samix.wire import encode_request

Gated = tuple[FrozenMixer, Gate]

MIB = 1 << 20
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT.value[0]


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """What only the garbage collector would free stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
def test_refused_batches_are_freed_at_once(gated: Gated):
    """The pixels of batches that a full queue refuses are gone with their refusals."""
    mixer, gate = gated
    call = random_call(256)
    with serve(mixer, batching=BatchingConfig(max_queue_images=256)) as server, talking(server) as talk:
        gate.shut()
        for number in (1, 2):
            talk.send(number, call)
            gate.wait_until_held() if number == 1 else None
        wait_for_queue(server)
        with talking(server) as other:
            tracemalloc.start()
            for number in range(1, 21):
                other.send(number, call)
                assert other.answer().refusal.code == RESOURCE_EXHAUSTED
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        gate.open()

    assert held < 4 * call.pixels.nbytes


def wait_for_queue(server: MixerServer) -> None:
    with server.batcher._changed:
        assert server.batcher._changed.wait_for(lambda: server.batcher.num_requests == 1, WAIT_S)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("moment", ["idle", "uploading", "waiting", "answered"])
def test_cancelled_streams_are_let_go(gated: Gated, moment: str):
    """Nothing keeps a stream that its client cancels, whatever it was doing."""
    mixer, gate = gated
    gone = threading.Event()
    with serve(mixer) as server, talking(server) as talk:
        gate.shut()
        bring_to(moment, talk, gate)
        (stream,) = server.front._streaming._streams
        watch = weakref.ref(stream, lambda _: gone.set())
        del stream

        talk.call.cancel()
        gate.open()

        assert gone.wait(WAIT_S), gc.get_referrers(watch())


def bring_to(moment: str, talk: Talk, gate: Gate) -> None:
    call = random_call()
    if moment == "uploading":
        talk.say(sequence=1, request=encode_request(call).message, pixel_bytes=call.pixels.nbytes, chunk=b"abc")
    elif moment == "waiting":
        talk.send(1, call)
        gate.wait_until_held()
        talk.send(2, call)
    elif moment == "answered":
        gate.open()
        talk.send(1, call)
        talk.answer()


def test_refusal_comes_before_the_rest_of_the_batch(server: MixerServer):
    """A batch for which there is no room is refused after its first chunk; its client may leave the others out."""
    good = random_call()
    with talking(server) as talk:
        talk.say(sequence=1, request=encode_request(good).message, pixel_bytes=65 * MIB, chunk=b"abc")
        refused = talk.answer()
        talk.send(2, good)
        answered = talk.answer()

    assert refused.refusal.code == INVALID_ARGUMENT
    assert answered.HasField("response")
    assert answered.sequence == 2


def test_rest_of_a_refused_batch_is_dropped(server: MixerServer):
    """A client that sends all of a batch that was refused loses nothing else."""
    good, num_bytes = random_call(), 66 * CHUNK_BYTES  # more than a message may have
    with talking(server) as talk:
        talk.say(sequence=1, request=encode_request(good).message, pixel_bytes=num_bytes, chunk=bytes(CHUNK_BYTES))
        refused = talk.answer()
        for _ in range(65):
            talk.say(sequence=1, chunk=bytes(CHUNK_BYTES))
        talk.send(2, good)
        answered = talk.answer()

    assert refused.refusal.code == INVALID_ARGUMENT
    assert answered.HasField("response")


def test_streams_leave_half_of_the_memory_to_batches(mixer: FrozenMixer):
    """Open streams count as memory: where half of it is theirs, one more is refused with RetryInfo, and mixes go on."""
    with serve(mixer, memory_mib=(resident_bytes() >> 20) + 160) as server, ExitStack() as opened:
        most = server.front._streaming._max_streams
        talks = [opened.enter_context(talking(server)) for _ in range(most)]

        with connect(server.addresses["grpc"]) as stub, pytest.raises(grpc.RpcError) as caught:
            next(stub.MixStream(iter(()), timeout=WAIT_S))
        talks[0].send(1, random_call())
        answered = talks[0].answer()

    error = from_rpc_error(caught.value, "here")
    assert 64 * MIB // 2 // STREAM_BYTES <= most < 256
    assert isinstance(error, MixerOverloaded)
    assert f"{most} streams are open" in str(error)
    assert answered.HasField("response")
    assert np.isfinite(error.retry_after_s)
