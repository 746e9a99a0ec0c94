"""What travels as JPEG is close to what was sent, and nothing that arrives can do more than be refused."""

import struct
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samix.errors import BadBatch
from samix.framing import Framed
from samix.jpeg import MAX_SCANS, MAX_SEGMENTS, JpegBatch, encode_images
from samix.mixer.v1 import mixer_pb2 as pb
from samix.wire import MixCall, decode_request, encode_request

SIDE = 24
EOI = b"\xff\xd9"


def smooth_pixels(num_images: int = 2, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Pictures that JPEG renders well: uint8 [B, 3, H, W] of slopes, each of its own brightness."""
    rows, columns = np.linspace(0, 90, height)[:, None], np.linspace(0, 90, width)
    slope = np.stack([rows + columns, rows + 0 * columns, 0 * rows + columns])
    return np.stack([slope + 60 * i / num_images for i in range(num_images)]).astype(np.uint8)


def picture() -> bytes:
    return encode_images(smooth_pixels(1), 90)[0]


def batch_of(*pictures: bytes, height: int = SIDE, width: int = SIDE) -> JpegBatch:
    lengths = [len(data) for data in pictures]
    return JpegBatch(data=b"".join(pictures), lengths=lengths, shape=(len(pictures), 3, height, width))


def frame_at(data: bytes) -> int:
    return data.index(b"\xff\xc0")


def with_size(data: bytes, height: int, width: int) -> bytes:
    """Change what the header says of the picture's size."""
    at = frame_at(data) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def with_marker(data: bytes, marker: int) -> bytes:
    """Change the kind of the frame."""
    at = frame_at(data) + 1
    return data[:at] + bytes([marker]) + data[at + 1 :]


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(content)) + content


def after_start(data: bytes, inserted: bytes) -> bytes:
    return data[:2] + inserted + data[2:]


def jpeg_request(num_images: int = 2) -> Framed[pb.MixRequest]:
    call = MixCall(
        mixer="tiny",
        pixels=smooth_pixels(num_images),
        lam=np.full(num_images, 0.5, np.float32),
        partner=np.arange(num_images)[::-1],
    )
    return encode_request(call, jpeg_quality=90)


def test_quality_is_a_matter_of_bytes() -> None:
    """A lower quality takes fewer bytes."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), np.uint8)

    assert len(encode_images(noise, 50)[0]) < len(encode_images(noise, 95)[0]) < noise.size


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.zeros((1, 3, 2, 2), np.float32), "only uint8 images travel as JPEG, got float32"),
        (np.zeros((1, 3, 1, 65_536), np.uint8), r"\[1, 3, 1, 65536\] cannot become JPEGs \(.*65500"),
    ],
)
def test_pixels_that_cannot_travel(pixels: np.ndarray, sentence: str) -> None:
    """Pixels that cannot become JPEGs are refused by value."""
    with pytest.raises(BadBatch, match=sentence):
        encode_images(pixels, 90)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is no JPEG, it begins with nothing"),
        (b"\x89PNG\r\n", "it begins with 89504e47"),
        (b"\xff\xd8", "its header is cut or damaged"),
        (with_size(picture(), 65_535, 65_535), "it is 65535 x 65535, shape says 24 x 24"),
        (with_size(picture(), 25, SIDE), "it is 25 x 24"),
        (with_size(picture(), SIDE, 0), "it is 24 x 0"),
        (with_marker(picture(), 0xC2), "it is progressive"),
        (with_marker(picture(), 0xC9), "arithmetic-coded"),
        (picture().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), "3 components of 12 bits"),
        (picture().replace(b"\x00\x18\x00\x18\x03", b"\x00\x18\x00\x18\x01"), "1 components of 8 bits"),
        (picture()[: frame_at(picture())] + picture()[frame_at(picture()) + 19 :], "its header is cut or damaged"),
        (after_start(picture(), segment(0xFE, b"") * MAX_SEGMENTS), "more than 32 segments before its pixels"),
        (picture()[:-2] + segment(0xDA, bytes(10)) * 3 + EOI, "more than 3 scans"),
        (after_start(picture(), b"\xff\x01"), "its header is cut or damaged"),
        (after_start(picture(), b"\xff\xe1\x00\x00"), "its header is cut or damaged"),
    ],
)  # fmt: skip
def test_unfit_pictures_are_refused(data: bytes, sentence: str) -> None:
    """What is no plain JPEG of the right size is refused before it is decoded, with its row and the reason."""
    good = picture()

    with pytest.raises(BadBatch, match=f"image 1 is refused: .*{sentence}"):
        batch_of(good, data).check()


def test_each_header_counts() -> None:
    """A picture is refused behind others that are fit, also where its header begins like theirs."""
    good, bare = picture(), after_start(picture(), segment(0xFE, b"hello"))

    batch_of(good, bare, good).check()
    with pytest.raises(BadBatch, match="image 2 is refused: its header is cut"):
        batch_of(good, bare, bare[:60], good).check()


@given(st.data())
def test_checks_agree_with_a_search(data: st.DataObject) -> None:
    """However scan markers lie in and between pictures, those of more than three are refused, and they alone."""
    scan = st.sampled_from([b"\xff\xda", b"\xda", b"\xff", b"\x00"])
    tails = [b"".join(data.draw(st.lists(scan, max_size=12))) for _ in range(3)]
    pictures = [picture() + tail for tail in tails]
    excess = [row for row, one in enumerate(pictures) if one.count(b"\xff\xda") > MAX_SCANS]

    if not excess:
        batch_of(*pictures).check()
        return
    with pytest.raises(BadBatch, match=f"^image {excess[0]} is refused: it has more than 3 scans"):
        batch_of(*pictures).check()


def test_check_takes_no_time() -> None:
    """Checking 64 ordinary pictures takes a small part of the time that decoding one takes."""
    pictures = encode_images(np.random.default_rng(0).integers(0, 256, (64, 3, 64, 64), np.uint8), 90)
    batch = batch_of(*pictures, height=64, width=64)
    started_s = time.thread_time()

    for _ in range(10):
        batch.check()

    assert time.thread_time() - started_s < 10 * 0.002


def test_a_batch_speaks_of_its_pixels() -> None:
    """Size, type and bytes are those of the pixels that the pictures hold."""
    batch = batch_of(picture(), picture())

    assert (len(batch), batch.shape, batch.dtype) == (2, (2, 3, SIDE, SIDE), np.uint8)
    assert batch.nbytes == 2 * 3 * SIDE * SIDE


@pytest.mark.parametrize("hidden", [b"\xff\x01", b"\xff\xd0", b"\xff\xd8"])
def test_frames_cannot_be_hidden(hidden: bytes) -> None:
    """A marker without a length, after which readers could disagree where the frame is, cannot hide a huge one."""
    bomb = segment(0xC2, struct.pack(">BHHB", 8, 65_535, 65_535, 3) + bytes(9))
    padding = bytes(0xFFC2 - len(bomb))

    with pytest.raises(BadBatch, match="its header is cut or damaged"):
        batch_of(after_start(picture(), hidden + bomb + padding)).check()


def test_requests_hold_jpegs() -> None:
    """A request that travels as JPEG holds pictures of the call's pixels, still compressed, and all else alike."""
    request = jpeg_request()

    call = decode_request(request)

    assert request.message.pixel_format == pb.PIXEL_FORMAT_JPEG
    assert isinstance(call.pixels, JpegBatch)
    assert [bytes(call.pixels.data[a:b]) for a, b in call.pixels.bounds()] == encode_images(smooth_pixels(), 90)
    assert call.pixels.shape == (2, 3, SIDE, SIDE)
    assert call.partner.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [
        ([], "bytes of each of 2 images, .* got 0 with a sum of 0"),
        ([5, 5, 5], "got 3 with a sum of 15"),
        ([2**32 - 1, 1], "got 2 with a sum of 4294967296"),
    ],
)
def test_lengths_must_fit(lengths: list[int], sentence: str) -> None:
    """Lengths that do not divide the bytes into the images are refused."""
    request = jpeg_request()
    request.message.ClearField("jpeg_lengths")
    request.message.jpeg_lengths.extend(lengths)

    with pytest.raises(BadBatch, match=sentence):
        decode_request(request)


def test_limits_come_first() -> None:
    """The shape is shown to the server's limits before any picture is looked at."""
    request = jpeg_request()
    damaged = Framed(request.message, memoryview(bytes(len(request.bulk))))

    def refuse(shape: tuple[int, ...]) -> None:
        raise BadBatch(f"too large: {shape}")

    with pytest.raises(BadBatch, match=r"too large: \(2, 3, 24, 24\)"):
        decode_request(damaged, refuse)
