"""Pictures are decoded to the pixels they hold, and whatever else arrives can do no more than be refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixer_server.engine.decoding import Decoder
from samix.errors import BadBatch
from samix.jpeg import JpegBatch, encode_images

SIDE = 24


def smooth_pixels(num_images: int = 1, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Pictures that JPEG renders well: uint8 [B, 3, H, W] of slopes, each of its own brightness."""
    rows, columns = np.linspace(0, 90, height)[:, None], np.linspace(0, 90, width)
    slope = np.stack([rows + columns, rows + 0 * columns, 0 * rows + columns])
    return np.stack([slope + 60 * i / num_images for i in range(num_images)]).astype(np.uint8)


def batch_of(pictures: list[bytes], height: int = SIDE, width: int = SIDE) -> JpegBatch:
    lengths = [len(data) for data in pictures]
    return JpegBatch(data=memoryview(b"".join(pictures)), lengths=lengths, shape=(len(pictures), 3, height, width))


PICTURE = encode_images(smooth_pixels(), 90)[0]


@pytest.mark.parametrize(("num_images", "height", "width"), [(1, SIDE, SIDE), (3, 17, 40), (7, 1, 1)])
def test_pictures_are_close(decoder: Decoder, num_images: int, height: int, width: int):
    """Pictures come back in their order and size, a few grey levels away, and may be written to."""
    pixels = smooth_pixels(num_images, height, width)

    decoded = decoder.decode(batch_of(encode_images(pixels, 95), height, width))

    assert (decoded.dtype, decoded.shape) == (np.uint8, pixels.shape)
    assert decoded.flags.writeable
    assert np.abs(decoded.astype(int) - pixels).max() <= 12


def test_pixels_are_those_of_torchvision(decoder: Decoder):
    """A picture has the same pixels as in torchvision, so that training and serving see one picture."""
    from torchvision.io import decode_jpeg

    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 56), np.uint8)
    pictures = encode_images(noise, 90)

    decoded = decoder.decode(batch_of(pictures, 40, 56))

    for pixels, picture in zip(decoded, pictures, strict=True):
        assert np.array_equal(pixels, decode_jpeg(torch.frombuffer(bytearray(picture), dtype=torch.uint8)))


def test_pixels_lie_as_convolutions_want_them(decoder: Decoder):
    """What is decoded is channels last in memory."""
    decoded = torch.from_numpy(decoder.decode(batch_of([PICTURE] * 3)))

    assert decoded.is_contiguous(memory_format=torch.channels_last)


def test_headers_are_checked(decoder: Decoder):
    """A picture of another size than was said is refused before it is decoded."""
    with pytest.raises(BadBatch, match="image 1 is refused: it is 24 x 24, shape says 25 x 24"):
        decoder.decode(batch_of([encode_images(smooth_pixels(1, 25), 90)[0], PICTURE], 25))


def test_the_first_damaged_picture_is_named(decoder: Decoder):
    """Of several damaged pictures the first is named."""
    pictures = [PICTURE, PICTURE, PICTURE[:-30], PICTURE, PICTURE[:-40]]

    with pytest.raises(BadBatch, match=r"^image 2 is a damaged JPEG \(Premature end of JPEG file\); send it again$"):
        decoder.decode(batch_of(pictures))


def test_damage_is_not_printed(decoder: Decoder, capfd: pytest.CaptureFixture[str]):
    """A damaged picture leaves nothing on the terminal: anybody could fill a server's log."""
    with pytest.raises(BadBatch):
        decoder.decode(batch_of([PICTURE[:-30]]))

    assert capfd.readouterr() == ("", "")


def test_many_callers_share_the_threads(decoder: Decoder):
    """Batches that are decoded at the same time get the pixels they get alone."""
    batches = [batch_of(encode_images(smooth_pixels(number), 90)) for number in range(1, 9)]
    alone = [decoder.decode(batch) for batch in batches]

    with ThreadPoolExecutor(8) as callers:
        together = list(callers.map(decoder.decode, batches))

    assert all(map(np.array_equal, alone, together))


@given(st.data())
def test_truncated_pictures_are_refused(decoder: Decoder, data: st.DataObject):
    """A picture that was cut anywhere is refused."""
    part = PICTURE[: data.draw(st.integers(0, len(PICTURE) - 1))]

    with pytest.raises(BadBatch, match=r"^image 0 is (refused|a damaged JPEG)"):
        decoder.decode(batch_of([part]))


@given(st.data())
def test_damaged_pictures_are_refused_or_decoded(decoder: Decoder, data: st.DataObject):
    """Whatever bytes are changed, inserted or dropped, a picture of the right size comes out or a refusal."""
    at, dropped = data.draw(st.integers(0, len(PICTURE))), data.draw(st.integers(0, 8))
    damaged = PICTURE[:at] + data.draw(st.binary(max_size=8)) + PICTURE[at + dropped :]

    try:
        decoded = decoder.decode(batch_of([damaged]))
    except BadBatch:
        return

    assert decoded.shape == (1, 3, SIDE, SIDE)
