"""Batches of pictures that are none, or others than they say: decoded or refused, and never the end of the server."""

import random
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from child_server import ChildServer
from fuzzing import Tally, Volley, fuzz, generator
from jpeg_mutations import spoil_picture, strange_pictures

from samix.jpeg import encode_images
from samix.mixer.v1 import mixer_pb2 as pb

PATH = ("jpeg", 0.2)

SIZES = ((16, 16), (17, 31), (40, 16))
"""Heights and widths, of whole blocks and of parts of them."""
MOST = 300
"""Pictures in a batch; 256 are taken."""


def plain_pictures(height: int, width: int) -> list[bytes]:
    """Make pictures as our clients send them."""
    pixels = np.random.default_rng(width).integers(0, 256, (6, 3, height, width), np.uint8)
    return encode_images(pixels, 90)


PLAIN = {size: plain_pictures(*size) for size in SIZES}
STRANGE = {size: strange_pictures(*size) for size in SIZES}


def draw_batch(rng: random.Random) -> pb.MixRequest:
    """Draw pictures, one of which or all are spoilt, and say of them what is true, or not quite."""
    num_images = rng.choice((1, 1, 1, 2, 2, 3, MOST if rng.random() < 0.02 else 4))
    height, width = size = rng.choice(SIZES)
    pictures = [rng.choice(PLAIN[size]) for _ in range(num_images)]
    for row in rng.choice((range(num_images), (rng.randrange(num_images),))):
        pictures[row] = draw_picture(size, rng)
    if rng.random() < 0.03:
        height = rng.choice((1, 8, 17, 65_535))
    request = pb.MixRequest(
        reply_format=pb.REPLY_FORMAT_MASK_LOGITS,
        pixel_format=pb.PIXEL_FORMAT_JPEG,
        shape=[num_images, 3, height, width],
        lam=[0.5] * num_images,
        partner=range(num_images),
        jpeg_lengths=map(len, pictures),
        pixels=b"".join(pictures),
    )
    if rng.random() < 0.05:  # the ends of the pictures lie elsewhere
        lengths = request.jpeg_lengths
        moved = rng.randint(0, lengths[0])
        lengths[0] -= moved
        lengths[-1] += moved
    return request


def draw_picture(size: tuple[int, int], rng: random.Random) -> bytes:
    """Draw a spoilt picture, or a sound one of a strange kind."""
    if rng.random() < 0.1:
        return rng.choice(STRANGE[size])
    return spoil_picture(rng.choice(rng.choice((PLAIN[size], PLAIN[size], STRANGE[size]))), rng)


@pytest.mark.timeout(0)
def test_pictures(server: ChildServer, channel: grpc.Channel, ask_well: Callable[[], bytes], tally: Tally):
    """Spoilt pictures get masks or a sentence, in time, and whatever decodes them survives and keeps quiet."""
    mix = channel.unary_unary("/samix.mixer.v1.MixerService/Mix").future
    volley = Volley(tally)

    def send(number: int) -> None:
        volley.fire(number, draw_batch(generator(tally.path, number)).SerializeToString(), mix)

    fuzz(server, tally, ask_well, send, volley.land)
