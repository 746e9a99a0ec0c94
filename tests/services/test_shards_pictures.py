import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_making import encoded, noise
from torchvision.transforms import InterpolationMode, v2

from samix.errors import ShardError
from services.shards.augment import CentreCrop, PaddedCrop, ResizedCrop
from services.shards.decode import open_picture
from services.shards.reader import Sample


def picture(image: bytes):
    return open_picture(Sample("a.tar", "k", image, 0))


def generator(seed: int = 0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_kind_of_picture_becomes_rgb(mode):
    """Greyscale, palette, alpha and CMYK pictures come out as RGB of the right colour."""
    white = Image.new("RGB", (8, 8), "white").convert(mode)
    stored = encoded(white, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")

    pixels = picture(stored).load()

    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    assert pixels.min() >= 254


def test_a_palette_with_alpha_becomes_rgb_without_a_warning():
    """Palette pictures with transparency are decoded; the alpha is dropped."""
    palette = Image.fromarray(noise(0)).convert("P")
    stored = encoded(palette, "PNG", transparency=b"\x00\x10\x20")

    pixels = picture(stored).load()

    assert np.array_equal(pixels, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "sample k of a.tar is no JPEG, PNG or WebP image"),
        (b"GIF89a" + bytes(50), "is no JPEG, PNG or WebP image"),
        (encoded(noise(0))[:-40], r"sample k of a.tar cannot be decoded \(.*\); replace the image"),
        (encoded(noise(0, 64, 64), "JPEG")[:900], r"cannot be decoded \(.*truncated"),
        (encoded(np.zeros((8, 8), np.uint16)), r"pixels of mode I;16; convert it to 8 bits"),
        (encoded(np.zeros((9000, 9000), bool)), "is 9000 x 9000 pixels, over 67108864; shrink it"),
        (encoded(np.zeros((14000, 14000), bool)), r"cannot be decoded|is 14000 x 14000 pixels"),
    ],
)
def test_an_unusable_picture_is_refused_by_name(image, words):
    """Damaged, foreign, huge and 16-bit pictures are errors that name the sample."""
    with pytest.raises(ShardError, match=words):
        picture(image).load()


@settings(max_examples=300)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_damaged_bytes_never_raise_anything_else(data, kind):
    """Whatever bytes stand in a shard, decoding gives a picture or a ShardError."""
    damaged = bytearray(encoded(noise(1), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]

    try:
        opened = picture(bytes(damaged))
        pixels = opened.load()
    except ShardError:
        return
    width, height = opened.size
    assert pixels.shape == (height, width, 3)


@pytest.mark.parametrize(
    ("at_least", "width", "height"), [(301, 400, 300), (151, 400, 300), (150, 200, 150), (75, 100, 75), (10, 50, 38)]
)
def test_large_jpegs_are_decoded_at_a_smaller_size_that_suffices(at_least, width, height):
    """A JPEG is decoded at half, a quarter or an eighth of its size, never below what was asked for."""
    large = picture(encoded(noise(0, 800, 1000), "JPEG"))

    pixels, box = large.crop((104, 200, 504, 500), at_least=at_least)

    assert pixels.shape == (height, width, 3)
    assert box == (0, 0, width, 37.5 if at_least == 10 else height)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_crop_is_a_part_of_the_picture(kind):
    """Decoding a box gives the pixels that the whole picture has there."""
    image = encoded(noise(2, 60, 90), kind)

    crop, box = picture(image).crop((10, 20, 70, 50), at_least=30)

    assert box == (0, 0, 60, 30)
    assert np.array_equal(crop, picture(image).load()[20:50, 10:70])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (97, 64), (64, 64), (40, 200)])
def test_evaluation_agrees_with_torchvision(width, height, interpolation):
    """Resize and centre crop give torchvision's pixels, within one step of rounding."""
    pixels = np.add.outer(np.arange(height) % 256, np.arange(width) % 256)[..., None] // 2 * np.ones(3)
    resize = v2.Resize(72, InterpolationMode(interpolation))
    reference = v2.Compose([resize, v2.CenterCrop(64)])(Image.fromarray(pixels.astype(np.uint8)))

    cropped = CentreCrop(size=64, resize=72, interpolation=interpolation)(
        picture(encoded(pixels.astype(np.uint8))), generator()
    )

    assert np.abs(cropped.astype(int) - np.asarray(reference).astype(int)).max() <= 1


def test_a_small_picture_of_the_right_size_passes_unchanged():
    """Evaluation of a CIFAR picture changes no pixel."""
    cropped = CentreCrop(size=8, resize=8)(picture(encoded(noise(3))), generator())

    assert np.array_equal(cropped, noise(3))


@given(seed=st.integers(0, 10_000), padding=st.integers(0, 7), flip=st.booleans())
def test_a_padded_crop_is_a_window_of_the_reflected_picture(seed, padding, flip):
    """The crop is one window of the picture with a reflected border, mirrored or not."""
    padded = np.pad(noise(5), ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    allowed = windows.reshape(-1, 8, 8, 3)

    crop = PaddedCrop(size=8, padding=padding, flip=flip)(picture(encoded(noise(5))), generator(seed))

    matches = (allowed == crop).all((1, 2, 3)).any() or (flip and (allowed[:, :, ::-1] == crop).all((1, 2, 3)).any())
    assert matches


def test_crops_take_every_offset_and_both_directions():
    """Over many draws a padded crop reaches all (2 p + 1) squared offsets, mirrored as often as not."""
    transform, image = PaddedCrop(size=8, padding=1, flip=True), encoded(noise(5))

    crops = {transform(picture(image), generator(seed)).tobytes() for seed in range(400)}

    assert len(crops) == 9 * 2


@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 2000),
    height=st.integers(1, 2000),
    scale=st.sampled_from([(0.08, 1.0), (0.5, 0.5), (1.0, 1.0)]),
)
def test_a_resized_crop_lies_in_the_picture(seed, width, height, scale):
    """The box has the asked area and shape, and never leaves the picture."""
    left, top, right, bottom = ResizedCrop(size=8, scale=scale, flip=False).draw_box(width, height, generator(seed))

    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_resized_crops_follow_the_published_distribution():
    """Area is uniform in `scale` and shape log-uniform in `ratio`, as in torchvision's RandomResizedCrop."""
    transform, rng = ResizedCrop(size=8, scale=(0.08, 0.5), flip=False), generator()

    boxes = np.array([transform.draw_box(1000, 1000, rng) for _ in range(4000)])

    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, shapes = widths * heights / 1e6, np.log(widths / heights)
    assert areas.min() == pytest.approx(0.08, abs=0.01)
    assert areas.max() == pytest.approx(0.5, abs=0.01)
    assert areas.mean() == pytest.approx(0.29, abs=0.01)
    assert shapes.mean() == pytest.approx(0, abs=0.02)
    assert shapes.max() == pytest.approx(np.log(4 / 3), abs=0.01)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_resized_crop_has_torchvisions_pixels(interpolation):
    """For the same box, crop and resize give exactly the pixels of torchvision's functions on uint8 tensors."""
    pixels = noise(7, 300, 400)
    transform = ResizedCrop(size=64, scale=(0.08, 1.0), flip=False, interpolation=interpolation)
    left, top, right, bottom = transform.draw_box(400, 300, generator(4))
    expected = v2.functional.resized_crop(
        torch.from_numpy(pixels).permute(2, 0, 1),
        *(top, left, bottom - top, right - left, [64, 64]),
        interpolation=InterpolationMode(interpolation),
    )

    crop = transform(picture(encoded(pixels)), generator(4))

    assert np.array_equal(crop.transpose(2, 0, 1), expected.numpy())


def test_a_resized_crop_is_the_resampled_box():
    """The pixels are those of the drawn box, also when a large JPEG was decoded at a smaller size."""
    waves = np.add.outer(np.sin(np.arange(1600) / 60), np.cos(np.arange(2000) / 60))
    smooth = (128 + 60 * waves)[..., None] * np.ones(3)
    transform = ResizedCrop(size=64, scale=(0.5, 1.0), flip=False)
    box = transform.draw_box(2000, 1600, generator(4))
    expected = Image.fromarray(smooth.astype(np.uint8)).resize((64, 64), Image.Resampling.BILINEAR, box)

    crop = transform(picture(encoded(smooth.astype(np.uint8), "JPEG", quality=95)), generator(4))

    assert np.abs(crop.astype(int) - np.asarray(expected).astype(int)).max() <= 3


@pytest.mark.parametrize(
    "transform",
    [
        PaddedCrop(size=8, padding=4, flip=True),
        ResizedCrop(size=8, scale=(0.08, 1.0), flip=True),
        CentreCrop(size=8, resize=10),
    ],
)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (20, 30), (3, 5), (1, 1), (1, 90)])
def test_every_transform_gives_the_asked_size_and_repeats(transform, height, width):
    """Any picture becomes uint8 [S, S, 3], and equal generators give equal pixels."""
    image = encoded(noise(1, height, width))

    first, second = transform(picture(image), generator(9)), transform(picture(image), generator(9))

    assert first.shape == (8, 8, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
