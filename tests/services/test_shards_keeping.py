"""Views taken of pictures that are kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shard_making import encoded, noise

from services.shards.augment import CentreCrop, ChangedCrop, PaddedCrop, ResizedCrop, Transform, view_generator
from services.shards.decode import Picture, open_picture
from services.shards.keeping import kept_view
from services.shards.reader import Sample


def picture_of(image: np.ndarray | Image.Image) -> Picture:
    return open_picture(Sample("shard", "key", encoded(image), 0))


def views(transform: Transform, picture: Picture, position: int) -> tuple[np.ndarray, np.ndarray]:
    """Apply a transform whole and in two steps: both uint8 [3, S, S]."""
    whole = transform(picture, view_generator(seed=1, epoch=2, position=position)).transpose(2, 0, 1)
    split = kept_view(transform)
    kept = split.kept(picture, np.random.default_rng()).transpose(2, 0, 1).copy()
    return whole, split.view(kept, picture.size, view_generator(seed=1, epoch=2, position=position))


@given(st.integers(0, 1000), st.integers(8, 20), st.integers(8, 20), st.integers(0, 7), st.booleans())
def test_padded_and_centred_views_are_exact(position: int, height: int, width: int, padding: int, flip: bool):
    """A padded or centred crop is the same bits whether its picture was kept or not."""
    picture = picture_of(noise(0, height, width))

    for transform in (PaddedCrop(size=8, padding=padding, flip=flip), CentreCrop(size=8, resize=10)):
        whole, split = views(transform, picture, position)
        np.testing.assert_array_equal(split, whole)


@given(st.integers(0, 1000), st.booleans())
def test_resized_views_show_the_same_box(position: int, flip: bool):
    """A resized crop of a kept picture shows the same part of it, mirrored alike, a little coarser."""
    rows, columns = np.mgrid[:90, :120]
    smooth = np.stack([rows * 2, columns * 2, (rows + columns)], -1).astype(np.uint8)
    transform = ResizedCrop(size=32, scale=(0.3, 1), flip=flip)

    whole, split = views(transform, picture_of(smooth), position)

    assert split.shape == whole.shape == (3, 32, 32)
    assert np.abs(split.astype(int) - whole).mean() < 4


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (3, 2)])
def test_tiny_boxes_keep_a_pixel(size: tuple[int, int]):
    """A crop of any picture is made, however narrow."""
    picture = picture_of(noise(0, *size))

    for position in range(20):
        _, split = views(ResizedCrop(size=16, scale=(0.01, 0.1), flip=True), picture, position)
        assert split.shape == (3, 16, 16)


def test_changed_colours_are_not_kept():
    """A transform that draws more than a crop cannot be split."""
    with pytest.raises(TypeError):
        kept_view(ChangedCrop(crop=PaddedCrop(size=8, padding=1, flip=True), changes=()))
