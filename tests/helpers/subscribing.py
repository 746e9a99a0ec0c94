"""A consumer of datasets made of stock protobuf alone: it subscribes, gives credits and puts chunks together."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from serving import WAIT_S

from samix.mixer.v1 import dataset_pb2 as pb
from samix.mixer.v1.dataset_pb2_grpc import DatasetServiceStub


@dataclass(frozen=True)
class Received:
    """A batch that came whole."""

    message: pb.ReadyBatch
    """All but its images."""
    data: bytes
    """Its images."""

    @property
    def pixels(self) -> np.ndarray:
        """The images, uint8 [B, 3, S, S]."""
        return np.frombuffer(self.data, np.uint8).reshape(tuple(self.message.shape))

    @property
    def keys(self) -> list[str]:
        return list(self.message.keys)


@dataclass
class Consumer:
    """One open Subscribe."""

    call: Any
    terms: pb.SubscriptionTerms = field(default_factory=pb.SubscriptionTerms)
    _up: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)

    def grant(self, num_credits: int) -> None:
        self._up.put(pb.SubscribeRequest(credits=num_credits))

    def half_close(self) -> None:
        self._up.put(None)

    def next_batch(self) -> Received:
        """Receive a batch; StopIteration at the end of the epoch."""
        first = next(self.call)
        assert first.HasField("batch"), first
        data = bytearray(first.chunk)
        while len(data) < first.pixel_bytes:
            message = next(self.call)
            assert message.chunk
            assert not message.HasField("batch")
            data += message.chunk
        assert len(data) == first.pixel_bytes
        return Received(first.batch, bytes(data))

    def batches(self, credits_each: int = 1) -> Iterator[Received]:
        """Receive all that are left, with a credit for each one that came."""
        while True:
            try:
                yield self.next_batch()
            except StopIteration:
                return
            self.grant(credits_each)


@contextmanager
def datasets_at(address: str) -> Iterator[DatasetServiceStub]:
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield DatasetServiceStub(channel)


def wanted(dataset: str = "noise", **changes: Any) -> pb.Subscription:
    """Make a good subscription, with some changes."""
    values: dict[str, Any] = {
        "dataset": dataset,
        "batch_size": 4,
        "image_size": 8,
        "num_consumers": 1,
        "seed": 7,
        "augmentation": pb.AUGMENTATION_CENTER,
        "token": "me",
    }
    return pb.Subscription(**values | changes)


@contextmanager
def subscribed(stub: DatasetServiceStub, subscription: pb.Subscription, num_credits: int = 4) -> Iterator[Consumer]:
    """Subscribe, and cancel at the end of the block; the terms have come."""
    consumer = Consumer(call=None)
    consumer._up.put(pb.SubscribeRequest(subscription=subscription, credits=num_credits))
    consumer.call = stub.Subscribe(iter(consumer._up.get, None), timeout=WAIT_S)
    try:
        consumer.terms = next(consumer.call).terms
        yield consumer
    finally:
        consumer.call.cancel()
        consumer.half_close()


def epoch_of(stub: DatasetServiceStub, subscription: pb.Subscription) -> list[Received]:
    """Receive all batches of a subscription."""
    with subscribed(stub, subscription) as consumer:
        return list(consumer.batches())


def refusal(stub: DatasetServiceStub, subscription: pb.Subscription) -> Any:
    """Subscribe and meet the error, with `code` and `details`."""
    try:
        epoch_of(stub, subscription)
    except grpc.RpcError as error:
        return error
    raise AssertionError("it was served")
