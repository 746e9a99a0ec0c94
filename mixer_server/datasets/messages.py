"""The messages that a batch travels in."""

from collections.abc import Iterator, Sequence

from samix.framing import join, join_pieces
from samix.mixer.v1 import dataset_pb2 as pb

CHUNK_BYTES = 1 << 20
"""Of images in a message. Each is copied several times on its way, and one of 2 MiB has left the caches in between: a
fifth more processor time at both ends. Smaller ones are too many messages."""


def batch_messages(batch: pb.ReadyBatch, pieces: Sequence[memoryview]) -> Iterator[bytes]:
    """Yield serialized messages: the batch with the first chunk of its images, then the other chunks.

    Args:
        batch: all but the images.
        pieces: the images; they are copied once, into the messages.
    """
    message = pb.SubscribeResponse(batch=batch, pixel_bytes=sum(map(len, pieces)))
    for chunk in cut(pieces, CHUNK_BYTES):
        yield join_pieces(message, chunk)
        message = pb.SubscribeResponse()
    if message.HasField("batch"):  # it has no images
        yield join(message)


def cut(pieces: Sequence[memoryview], num_bytes: int) -> Iterator[list[memoryview]]:
    """Cut pieces, taken as one, into chunks of `num_bytes`; the last one may be smaller."""
    chunk: list[memoryview] = []
    room = num_bytes
    for piece in pieces:
        start = 0
        while start < len(piece):
            part = piece[start : start + room]
            chunk.append(part)
            start, room = start + len(part), room - len(part)
            if not room:
                yield chunk
                chunk, room = [], num_bytes
    if chunk:
        yield chunk
