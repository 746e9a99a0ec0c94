"""`samix gallery`: pictures of what a mixer does."""

from pathlib import Path

import pytest
from matplotlib.image import imread
from training import picture, write_pictures, write_shard

from trainer.gallery import main


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pictures(tmp_path_factory.mktemp("shards") / "pictures.tar", 20)


def test_draws_mixes_and_masks(artefact: Path, shard: str, tmp_path: Path):
    """The gallery and the plot of masks are pictures with something on them."""
    paths = [tmp_path / "gallery.png", tmp_path / "masks.png"]
    flags = ["--mixer", str(artefact), "--data", shard, "--out", str(paths[0]), "--masks-plot", str(paths[1])]

    status = main([*flags, "--pairs", "3", "--device", "cpu"])

    assert status == 0
    for path in paths:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 100
        assert pixels.std() > 0.05


def test_reads_only_what_it_draws(artefact: Path, tmp_path: Path):
    """Thumbnails need no labels: a set is not read through to draw some of it."""
    samples = {number: (picture(number), 0) for number in range(200)}
    shard = write_shard(tmp_path / "a.tar", {**samples, 7: (b"no picture", -1)})
    flags = ["--mixer", str(artefact), "--data", shard, "--out", str(tmp_path / "gallery.png"), "--device", "cpu"]

    assert main([*flags, "--pairs", "1"]) == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--mixer", "gone.safetensors"], "there is no mixer at gone.safetensors"),
        (["--data", "gone.tar"], "no shard matches 'gone.tar'"),
        (["--out", "gallery.jpg"], "gallery.jpg"),
        (["--pairs", "50"], "50 pairs need 100 pictures"),
        (["--pairs", "0"], "pairs must be at least 1, got 0"),
        (["--lams", "0.5", "1.5"], "lams must lie in [0, 1]"),
        (["--image-size", "4"], "8 to 1024"),
        (["--image-size", "-16"], "8 to 1024"),
    ],
)
def test_refuses(
    artefact: Path,
    shard: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    sentence: str,
):
    """What cannot be drawn is one sentence with the value and exit status 2, and no picture is left."""
    usual = ["--mixer", str(artefact), "--data", shard, "--out", str(tmp_path / "gallery.png"), "--device", "cpu"]

    status = main([*usual, *flags])

    errors = capsys.readouterr().err.splitlines()
    assert status == 2
    assert errors[-1].startswith("error: ")
    assert sentence in errors[-1]
    assert list(tmp_path.iterdir()) == []
