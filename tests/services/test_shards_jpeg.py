"""JPEG decoding beside Pillow's, and of rows alone."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_making import encoded, noise, real_data

from services.shards import jpeg
from services.shards.index import open_shards
from services.shards.reader import SampleReader

KINDS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 2},
    "optimised": {"optimize": True, "quality": 30},
}


def by_pillow(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def photo_like(height: int, width: int) -> np.ndarray:
    """Colour that changes slowly and in steps, uint8 [height, width, 3]: what JPEG was made for, and its worst case."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / 7), np.cos(columns / 11), np.sin((rows + columns) / 5)], axis=-1)
    return (127 + 90 * waves + 30 * ((rows // 8 + columns // 8) % 2)[..., None]).astype(np.uint8)


def frame_of(image: bytes) -> jpeg.Frame:
    frame = jpeg.read_frame(image)
    assert frame is not None
    return frame


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_pillows(kind, mode):
    """Both decoders give the same pixels up to two steps: what exact inverse transforms may differ by."""
    options = {name: value for name, value in KINDS[kind].items() if mode == "RGB" or name != "subsampling"}
    image = encoded(Image.fromarray(photo_like(75, 101)).convert(mode), "JPEG", **options)

    pixels = jpeg.decode(image, frame_of(image), bottom=75)

    assert np.abs(pixels.astype(int) - by_pillow(image)).max() <= 2


@settings(max_examples=200)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    height=st.integers(1, 70),
    width=st.integers(1, 40),
    share=st.floats(0, 1),
    factor=st.sampled_from(jpeg.REDUCTIONS),
)
def test_rows_above_a_bottom_are_those_of_the_whole_picture(kind, height, width, share, factor):
    """Leaving out the rows below changes no pixel above, whatever the sampling and at any size."""
    image = encoded(photo_like(height, width), "JPEG", **KINDS[kind])
    bottom = max(1, round(share * height))
    whole = jpeg.decode(image, frame_of(image), bottom=height, factor=factor)

    rows = jpeg.decode(image, frame_of(image), bottom=bottom, factor=factor)

    needed = -(-bottom // factor)
    assert whole.shape == (-(-height // factor), -(-width // factor), 3)
    assert np.array_equal(rows[:needed], whole[:needed])


def test_rows_below_are_not_decoded():
    """Damage below the rows that are needed goes unnoticed, and no such rows come back."""
    image = encoded(noise(0, 640, 64), "JPEG")
    half = len(image) // 2
    damaged = image[:half] + b"\x00" * (len(image) - half - 2) + image[-2:]

    rows = jpeg.decode(damaged, frame_of(damaged), bottom=160)

    assert rows.shape == (162, 64, 3)
    assert np.array_equal(rows[:160], by_pillow(image)[:160])


@pytest.mark.parametrize(
    "image",
    [
        encoded(Image.new("CMYK", (8, 8)), "JPEG"),
        encoded(noise(0), "PNG"),
        encoded(noise(0), "WEBP"),
        encoded(noise(0), "JPEG")[:100],
        encoded(noise(0), "JPEG").replace(b"\xff\xc0", b"\xff\xc9", 1),  # arithmetic coding
        encoded(noise(0), "JPEG", subsampling=0).replace(b"\x01\x11\x00", b"\x01\x41\x00", 1),  # 4:1:1
        b"",
        b"\xff\xd8",
    ],
    ids=["cmyk", "png", "webp", "cut header", "arithmetic", "4:1:1", "empty", "start only"],
)
def test_other_files_are_left_to_pillow(image):
    """CMYK, arithmetic coding, unusual sampling, other formats and damaged headers are not for this decoder."""
    frame = jpeg.read_frame(image)

    assert frame is None


@pytest.mark.parametrize("folder", ["imagenet-like/native", "imagenet-like/imagenette224"])
def test_real_photographs_decode_as_by_pillow(folder):
    """Photographs come out as Pillow decodes them, whole and above any row."""
    shards = open_shards(f"{real_data() / folder}/*-val-*.tar")
    with SampleReader(shards) as reader:
        images = [reader.read(position).image for position in range(0, shards.total, 3)]

    for image in images:
        frame, expected = frame_of(image), by_pillow(image)
        bottom = frame.height * 2 // 3
        assert np.abs(jpeg.decode(image, frame, bottom=frame.height).astype(int) - expected).max() <= 2
        assert np.abs(jpeg.decode(image, frame, bottom=bottom)[:bottom].astype(int) - expected[:bottom]).max() <= 2
