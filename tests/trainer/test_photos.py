"""Pictures of people: of any size, format and mode, turned by EXIF, damaged."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samix.errors import InputError
from trainer.photos import open_photo, squares

RED, WHITE, GREY = (255, 0, 0), (255, 255, 255), (128, 128, 128)


def saved(path: Path, image: Image.Image, **settings: object) -> Path:
    image.save(path, **settings)  # pyright: ignore[reportArgumentType] - each format has its own
    return path


def colour_of(path: Path) -> object:
    return open_photo(path).getpixel((2, 2))


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
    Image.fromarray(noise).save(file, kind, **({} if kind == "GIF" else {"exif": exif}))
    return file.getvalue()


KINDS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF")
ENCODED = {kind: encoded(kind) for kind in KINDS}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif", "ppm", "tga"])
def test_reads_what_pillow_reads(tmp_path: Path, suffix: str):
    """A red picture of any format is red, at its own size."""
    path = saved(tmp_path / f"red.{suffix}", Image.new("RGB", (30, 20), RED))

    photo = open_photo(path)

    assert photo.size == (30, 20)
    assert np.abs(np.array(photo).astype(int) - RED).max() <= 2


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("L", (8, 8), 128), GREY),
        (Image.new("1", (8, 8), 1), WHITE),
        (Image.new("LA", (8, 8), (128, 255)), GREY),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), RED),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)).quantize(), WHITE),
        (Image.new("RGB", (8, 8), RED).quantize(), RED),
        (Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)), GREY),
        (Image.fromarray(np.full((8, 8), 65535, np.int32)), WHITE),
    ],
    ids=["grey", "bilevel", "grey and alpha", "opaque", "transparent", "transparent palette", "palette", "16 bit", "I"],
)
def test_every_mode_becomes_the_colour_a_viewer_shows(tmp_path: Path, image: Image.Image, colour: tuple[int, ...]):
    """Grey has equal channels, 16 bits keep their brightness, and what is transparent lies on white."""
    suffix = "tiff" if image.mode == "I" else "png"

    assert colour_of(saved(tmp_path / f"picture.{suffix}", image)) == colour


def test_is_turned_as_exif_says(tmp_path: Path):
    """What a camera held upright took is upright: the red left edge of the stored rows ends up on top."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :10] = RED
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise

    photo = open_photo(saved(tmp_path / "turned.png", Image.fromarray(pixels), exif=exif))

    assert photo.size == (20, 30)
    assert photo.getpixel((10, 2)) == RED
    assert photo.getpixel((10, 28)) == (0, 0, 0)


def test_squares_show_the_middle(tmp_path: Path):
    """Pictures of different shapes are cropped to their middle and come at one size, as uint8 [B, 3, S, S]."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = RED
    wide, small = Image.fromarray(pixels), Image.new("RGB", (5, 7), RED)

    both = squares([wide, small], 16)

    assert both.shape == (2, 3, 16, 16)
    assert (both[:, 0, :, 1:-1] == 255).all()
    assert (both[:, 1:] == 0).all()


def png_header(width: int, height: int) -> bytes:
    fields = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + fields + struct.pack(">II", zlib.crc32(fields), 10) + b"IDAT"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no picture of a known format; convert it to JPEG or PNG"),
        (b"words", "is no picture of a known format"),
        (ENCODED["JPEG"][:-200], "cannot be decoded"),
        (ENCODED["PNG"][:-200], "cannot be decoded"),
        (png_header(9000, 9000), "is 9000 x 9000 pixels, over 67108864; shrink it first"),
        (png_header(60000, 60000), "is over 67108864 pixels; shrink it first"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "large", "bomb"],
)
def test_refuses(tmp_path: Path, content: bytes, sentence: str):
    """What is no picture, is damaged or too large is refused by name, before much memory is taken."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)

    with pytest.raises(InputError, match=f"photo.jpg {sentence}"):
        open_photo(path)


def test_refuses_values_of_unknown_range(tmp_path: Path):
    """Floating-point pixels have no white: one has to say which."""
    path = saved(tmp_path / "depth.tiff", Image.fromarray(np.full((8, 8), 2.5, np.float32)))

    with pytest.raises(InputError, match=r"values of 2\.5 to 2\.5, not 8 or 16 bits"):
        open_photo(path)


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path):
    """It names the file, as every program does."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        open_photo(tmp_path / "nowhere.jpg")


@given(kind=st.sampled_from(KINDS), place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 400))
def test_damage_is_refused_or_shown(
    tmp_path_factory: pytest.TempPathFactory, kind: str, place: int, value: int, cut: int
):
    """A byte that flipped, or a lost end, gives pixels or a sentence, never another error."""
    content = bytearray(ENCODED[kind])
    content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: len(content) - cut % len(content)])

    try:
        shown = open_photo(path).mode
    except InputError as error:
        shown = str(error)

    assert shown == "RGB" or f"{path} " in shown
