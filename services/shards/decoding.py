"""What a process that decodes is asked for, and what it answers: pixels in shared memory, all else through a pipe."""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle

import numpy as np
import torch

from samix.errors import InputError, ShardError
from services.shards.augment import Transform, view_generator
from services.shards.decode import open_picture
from services.shards.index import ShardSet
from services.shards.keeping import WholePicture
from services.shards.processes import leave_signals_to_parent
from services.shards.reader import SampleReader


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRequest:
    """Samples to read, decode and transform; the answer depends on nothing else."""

    positions: Sequence[int]
    """Where they stand in their set."""
    transform: Transform | WholePicture
    """What becomes of each, with draws of its own."""
    seed: int
    """Of the draws."""
    epoch: int
    """Of the draws."""
    attempt: int = 0
    """A larger number than ever before tries shards again that could not be read."""

    @property
    def image_bytes(self) -> int:
        """Bytes of one image of the answer."""
        return 3 * self.transform.size**2

    @property
    def num_bytes(self) -> int:
        """Bytes of all images of the answer."""
        return len(self.positions) * self.image_bytes


@dataclass(frozen=True, slots=True)
class DecodedSample:
    """What is known of a sample beside its pixels."""

    key: str
    label: int
    size: tuple[int, int]
    """Width and height as stored, pixels."""


@dataclass(frozen=True, slots=True)
class UnreadableSample:
    """A sample that could not be read or decoded."""

    position: int
    """Where it stands in its set."""
    name: str
    """Its key, or where it would be."""
    reason: str
    """The sentence of its error."""


@dataclass(frozen=True, slots=True)
class NewMemory:
    """Says that a handle follows, of memory for answers from now on."""

    num_bytes: int


Described = list[DecodedSample | UnreadableSample]
Message = DecodeRequest | NewMemory
Answer = Described | InputError | OSError


def serve_decoding(connection: Connection, shards: ShardSet) -> None:
    """Answer requests until the other end is closed; the body of a process."""
    leave_signals_to_parent()
    torch.set_num_threads(1)  # there is a process for each core
    with SampleReader(shards) as reader:
        worker = _Worker(reader)
        while (message := _receive(connection)) is not None:
            if isinstance(message, NewMemory):
                worker.memory = _map(recv_handle(connection), message.num_bytes)
            else:
                connection.send(worker.answer(message))


class _Worker:
    def __init__(self, reader: SampleReader) -> None:
        self.memory: mmap.mmap | None = None
        self._reader = reader
        self._attempt = 0

    def answer(self, request: DecodeRequest) -> Answer:
        if request.attempt > self._attempt:
            self._attempt = request.attempt
            self._reader.try_again()
        try:
            return [self._decode(request, row) for row in range(len(request.positions))]
        except (InputError, OSError) as err:  # of the machine, not of a sample
            return err

    def _decode(self, request: DecodeRequest, row: int) -> DecodedSample | UnreadableSample:
        assert self.memory is not None, "memory comes before the first request"
        position, size = request.positions[row], request.transform.size
        try:
            sample = self._reader.read(position)
            picture = open_picture(sample)
            rng = view_generator(seed=request.seed, epoch=request.epoch, position=position)
            pixels = request.transform(picture, rng)
        except ShardError as err:
            return UnreadableSample(position, self._reader.name(position), str(err))
        target = np.frombuffer(self.memory, np.uint8, request.image_bytes, row * request.image_bytes)
        target.reshape(3, size, size)[:] = pixels.transpose(2, 0, 1)
        return DecodedSample(sample.key, sample.label, picture.size)


def _receive(connection: Connection) -> Message | None:
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _map(handle: int, num_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(handle, num_bytes)
    finally:
        os.close(handle)
