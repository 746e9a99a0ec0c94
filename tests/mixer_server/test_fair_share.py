"""One client that asks for much beside one that asks for little: what each is given."""

import queue
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
from serving import WAIT_S, Gate, random_call, serve

from mixer_server.scheduling.batcher import BatchingConfig
from samix.framing import join
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.frozen import FrozenMixer
from samix.wire import CLIENT_KEY, MixCall, encode_request

Gated = tuple[FrozenMixer, Gate]

STREAMS = 16
DEPTH = 4
LEAST_SHARE = 0.45 / 2


class Talker:
    """A stream of one client, whose answers are noted by the client's name."""

    def __init__(self, channel: grpc.Channel, name: str, served: queue.SimpleQueue[str]) -> None:
        self._name = name
        self._served = served
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        stream = channel.stream_stream("/samix.mixer.v1.MixerService/MixStream")
        self._call = stream(iter(self._said.get, None), timeout=WAIT_S, metadata=((CLIENT_KEY, name),))
        self._sequence = 0
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def send(self, call: MixCall) -> None:
        self._sequence += 1
        framed = encode_request(call)
        head = pb.MixStreamRequest(sequence=self._sequence, request=framed.message, pixel_bytes=len(framed.bulk))
        self._said.put(join(head, framed.bulk))

    def close(self) -> None:
        self._said.put(None)
        self._listener.join()

    def _listen(self) -> None:
        for data in self._call:
            if pb.MixStreamResponse.FromString(data).HasField("response"):
                self._served.put(self._name)


def serving_order(gated: Gated, requests: list[tuple[str, int]], call: MixCall) -> Iterator[str]:
    """Let streams (client, batches) ask while a pass is held; yield whose batches are answered, in that order."""
    mixer, gate = gated
    served: queue.SimpleQueue[str] = queue.SimpleQueue()
    batching = BatchingConfig(max_images=len(call.pixels))
    with ExitStack() as opened:
        server = opened.enter_context(serve(mixer, batching=batching))
        channel = opened.enter_context(grpc.insecure_channel(server.addresses["grpc"]))
        gate.shut()
        for name, num_batches in requests:
            talker = Talker(channel, name, served)
            opened.callback(talker.close)
            for _ in range(num_batches):
                talker.send(call)
        total = sum(num_batches for _, num_batches in requests)
        changed = server.batcher._changed
        with changed:  # one batch is in the pass that is held
            assert changed.wait_for(lambda: server.batcher.num_requests >= total - 1, WAIT_S)
        gate.open()
        for _ in range(total):
            yield served.get(timeout=WAIT_S)


def test_modest_client_keeps_its_share(gated: Gated):
    """A client with one stream is served at least 0.45 of an equal share beside one with 16, until it has all."""
    requests = [*[("greedy", DEPTH)] * STREAMS, ("modest", DEPTH)]

    order = list(serving_order(gated, requests, random_call(2)))

    last = len(order) - order[::-1].index("modest")
    assert Counter(order) == {"greedy": STREAMS * DEPTH, "modest": DEPTH}
    assert DEPTH / last >= LEAST_SHARE


def test_streams_of_one_client_share_its_share(gated: Gated):
    """Two clients get equal shares, however many streams the batches of one come over."""
    requests = [*[("many", 2)] * 4, ("one", 8)]

    order = list(serving_order(gated, requests, random_call(2)))

    assert abs(order[:8].count("many") - order[:8].count("one")) <= 2
