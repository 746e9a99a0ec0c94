"""`samix mix`: two pictures, and what a mixer makes of them."""

import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from serving import serve, tiny_mixer
from shard_making import real_data
from torch import Tensor

from mixer_server.app import MixerServer
from samix.mixing.artefact import load_mixer
from samix.mixing.policies import mixup
from services.shards.index import open_shards
from services.shards.reader import SampleReader
from trainer.mix import main
from trainer.photos import open_photo, squares
from trainer.shipped import NAME, shipped_mixer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two noisy pictures of different size, wide and high."""
    folder, rng = tmp_path_factory.mktemp("pair"), np.random.default_rng(0)
    for name, shape in (("a.png", (40, 60, 3)), ("b.png", (90, 50, 3))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name)
    return [str(folder / "a.png"), str(folder / "b.png")]


def pixels_of(path: Path) -> Tensor:
    """Read a PNG as int [3, H, W]."""
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).int()


def in_bytes(image: Tensor) -> Tensor:
    return (image * 255).round().int()


def photos_of(names: list[str], side: int) -> Tensor:
    return squares([open_photo(Path(name)) for name in names], side)


def nearer(mixed: Tensor, one: Tensor, other: Tensor) -> float:
    """Share of the area that is at least twice as near to one picture as to the other, where they differ at all."""
    to_one, to_other = ((mixed - picture).abs().mean(dim=0) for picture in (one, other))
    return (2 * to_one + 0.02 < to_other).float().mean().item()


def test_mixes_by_the_mixers_mask(artefact: Path, pair: list[str], tmp_path: Path):
    """At the size a mixer was trained on, the PNG holds what `Mixer.mix` makes of the two squares."""
    out = tmp_path / "mixed.png"
    size = ["--size", "32", "--device", "cpu"]

    status = main([*pair, "--mixer", str(artefact), "--lam", "0.4", "--out", str(out), *size])

    assert status == 0
    expected = load_mixer(artefact).mix(photos_of(pair, 32), lam=0.4, partner=torch.tensor([1, 0])).images[0]
    assert torch.equal(pixels_of(out), in_bytes(expected))


def test_draws_the_comparison_beside_it(artefact: Path, pair: list[str], tmp_path: Path):
    """Pair, learned mix, Mixup and CutMix stand in four columns over their masks; --no-compare leaves them out."""
    usual = [*pair, "--mixer", str(artefact), "--device", "cpu"]

    statuses = [main([*usual, "--out", str(tmp_path / "a.png")])]
    statuses += [main([*usual, "--out", str(tmp_path / "b.png"), "--no-compare"])]

    assert statuses == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a-compared.png", "b.png"}
    margin, cell, gap = 10, 240, 14  # pictures of 40 px six times as large
    assert imread(tmp_path / "a-compared.png").shape[1] == 2 * margin + 4 * cell + 3 * gap


def test_a_server_gives_the_same_picture(artefact: Path, server: MixerServer, pair: list[str], tmp_path: Path):
    """Mixed remotely, the pictures differ by the rounding of mask logits alone: two steps of 255 at most."""
    homes = {"file": ["--mixer", str(artefact)], "server": ["--connect", server.addresses["grpc"]]}

    for name, flags in homes.items():
        assert main([*pair, *flags, "--lam", "0.7", "--out", str(tmp_path / f"{name}.png"), "--device", "cpu"]) == 0

    for kind in ("", "-compared"):
        drawn = [imread(tmp_path / f"{name}{kind}.png") for name in homes]
        assert np.abs(drawn[0] - drawn[1]).max() < 2.5 / 255


def test_needs_nothing_but_two_pictures(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Without a mixer the one of this project mixes, by its masks for copies of the size it was trained on."""
    usual, trained_size = [*pair, "--device", "cpu"], load_mixer(shipped_mixer()).spec.image_size

    statuses = [main([*usual, "--out", str(tmp_path / "a.png")])]
    statuses += [main([*usual, "--encoder-size", str(trained_size), "--out", str(tmp_path / "b.png")])]

    assert statuses == [0, 0]
    assert f'mixer="{NAME} ' in capsys.readouterr().err
    assert pixels_of(tmp_path / "a.png").shape == (3, 40, 40)
    assert torch.equal(pixels_of(tmp_path / "a.png"), pixels_of(tmp_path / "b.png"))


def test_of_several_mixers_one_is_chosen(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A server with two mixers is asked for a name, and mixes by the one that is named."""
    with serve(tiny_mixer(), tiny_mixer("zebra", seed=1)) as running:
        usual = [*pair, "--connect", running.addresses["grpc"], "--no-compare"]
        refused = main([*usual, "--out", str(tmp_path / "none.png")])
        statuses = [
            main([*usual, "--mixer-name", name, "--out", str(tmp_path / f"{name}.png")]) for name in ("tiny", "zebra")
        ]

    assert (refused, statuses) == (2, [0, 0])
    message = capsys.readouterr().err
    assert "hosts tiny" in message
    assert "choose one with --mixer-name" in message
    assert not torch.equal(pixels_of(tmp_path / "tiny.png"), pixels_of(tmp_path / "zebra.png"))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lam", "1.5"], "from 0 to 1, got 1.5"),
        (["--lam", "nan"], "from 0 to 1, got nan"),
        (["--size", "5000"], "0..4096 pixels, got 5000"),
        (["--encoder-size", "-1"], "got -1"),
        (["--encoder-size", "4"], "8 to 1024"),
        (["--mixer", "gone.safetensors"], "there is no mixer at gone.safetensors"),
        (["--connect", "localhost:1"], "give one of them"),
        (["--mixer-name", "tiny"], "give --connect HOST:PORT with it"),
        (["--out", "mixed.jpg"], "written as .png, got 'mixed.jpg'"),
        (["--out", "nowhere/mixed.png"], "nowhere/mixed.png"),
    ],
)
def test_refuses(
    artefact: Path, pair: list[str], capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str, tmp_path: Path
):
    """A wrong flag is one sentence with the value and exit status 2, and no picture is left."""
    usual = [*pair, "--mixer", str(artefact), "--out", str(tmp_path / "mixed.png"), "--device", "cpu"]

    status = main([*usual, *flags])

    errors = capsys.readouterr().err.splitlines()
    assert status == 2
    assert errors[-1].startswith("error: ")
    assert sentence in errors[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["mixed-compared.png", "mixed.png"])
def test_keeps_the_pictures_it_mixes(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str):
    """A picture is replaced neither by its own mix nor by the comparison."""
    second = shutil.copyfile(pair[1], tmp_path / "mixed-compared.png")

    status = main([pair[0], str(second), "--out", str(tmp_path / out)])

    assert status == 2
    assert f"would replace {second}, a picture to mix" in capsys.readouterr().err
    assert second.read_bytes() == Path(pair[1]).read_bytes()


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_names_a_picture_it_cannot_read(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
):
    """A file that is missing or no picture is named in one sentence."""
    broken = tmp_path / "broken.jpg"
    if content is not None:
        broken.write_bytes(content)

    status = main([pair[0], str(broken), "--out", str(tmp_path / "mixed.png")])

    errors = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(errors) == 1
    assert "broken.jpg" in errors[0]


def test_says_that_nobody_answers(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A server that is not there is one sentence and exit status 1."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"

    status = main([*pair, "--connect", address, "--out", str(tmp_path / "mixed.png")])

    errors = capsys.readouterr().err.splitlines()
    assert status == 1
    assert address in errors[-1]
    assert not any("Traceback" in line for line in errors)


def test_a_page_is_no_mixer_server(
    server: MixerServer, pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The port of the status page, taken for that of gRPC, is one sentence too."""
    status = main([*pair, "--connect", server.addresses["http"], "--out", str(tmp_path / "mixed.png")])

    errors = capsys.readouterr().err.splitlines()
    assert status in (1, 2)
    assert errors[-1].startswith("error: ")
    assert not any("Traceback" in line for line in errors)


def test_shows_both_objects_of_photographs(tmp_path: Path):
    """Of two photographs the mix holds parts of either that are hardly covered by the other, where Mixup has none."""
    shards = open_shards(str(real_data() / "imagenet-like/native/imagenet-native-val-*.tar"))
    names = [str(tmp_path / name) for name in ("scorpion.jpg", "basketball.jpg")]
    with SampleReader(shards) as reader:
        for name, position in zip(names, (47, 57), strict=True):
            Path(name).write_bytes(reader.read(position).image)

    status = main([*names, "--lam", "0.5", "--out", str(tmp_path / "mixed.png"), "--device", "cpu"])

    assert status == 0
    mixed = pixels_of(tmp_path / "mixed.png") / 255
    a, b = photos_of(names, mixed.shape[-1]) / 255
    blended = mixup().mix(torch.stack([a, b]), lam=0.5, partner=torch.tensor([1, 0])).images[0]
    assert nearer(mixed, a, b) > 0.1
    assert nearer(mixed, b, a) > 0.1
    assert nearer(blended, a, b) == nearer(blended, b, a) == 0
