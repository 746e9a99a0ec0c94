"""Batches of pictures that are none, or others than they say: decoded or refused, and never the end of the server."""

import random
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from child_server import ChildServer
from framing import whole
from fuzzing import Tally, Volley, fuzz, generator
from jpeg_mutations import spoil_picture, strange_pictures
from serving import random_call

from samix.mixer.v1 import mixer_pb2 as pb
from samix.wire import encode_request

PATH = ("jpeg", 0.2)

SIDE = 16
NOISE = random_call(6, side=SIDE)
REQUEST = whole(encode_request(NOISE, jpeg_quality=90))
ENDS = np.cumsum([0, *REQUEST.jpeg_lengths]).tolist()
PICTURES = [REQUEST.pixels[start:end] for start, end in zip(ENDS, ENDS[1:], strict=False)] + strange_pictures(SIDE)
MOST = 300
"""Pictures in a batch; 256 are taken."""


def draw_batch(rng: random.Random) -> pb.MixRequest:
    """Draw pictures, one of which or all are spoilt, and say of them what is true, or not quite."""
    num_images = rng.choice((1, 1, 1, 2, 2, 3, MOST if rng.random() < 0.02 else 4))
    pictures = [rng.choice(PICTURES[:6]) for _ in range(num_images)]
    for row in rng.choice((range(num_images), (rng.randrange(num_images),))):
        pictures[row] = spoil_picture(rng.choice(PICTURES), rng)
    side = SIDE if rng.random() < 0.95 else rng.choice((1, 8, 17, 65_535))
    request = pb.MixRequest(
        reply_format=pb.REPLY_FORMAT_MASK_LOGITS,
        pixel_format=pb.PIXEL_FORMAT_JPEG,
        shape=[num_images, 3, side, side],
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


@pytest.mark.timeout(0)
def test_pictures(server: ChildServer, channel: grpc.Channel, ask_well: Callable[[], bytes], tally: Tally):
    """Spoilt pictures get masks or a sentence, in time, and whatever decodes them survives and keeps quiet."""
    mix = channel.unary_unary("/samix.mixer.v1.MixerService/Mix").future
    volley = Volley(tally)

    def send(number: int) -> None:
        volley.fire(number, draw_batch(generator(tally.path, number)).SerializeToString(), mix)

    fuzz(server, tally, ask_well, send, volley.land)
