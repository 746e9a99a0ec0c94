"""`samix gallery`: pictures of what mixers do."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from serving import serve, tiny_mixer
from training import SIDE, picture, write_pictures, write_shard

from mixer_server.app import MixerServer
from samix.mixing.artefact import save_artefact
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import TINY_RESNET, samix_spec
from trainer.gallery import main


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pictures(tmp_path_factory.mktemp("shards") / "pictures.tar", 20)


def test_draws_mixes_masks_and_maps(artefact: Path, shard: str, tmp_path: Path):
    """All three pictures of a learned mixer have something on them."""
    paths = [tmp_path / f"{name}.png" for name in ("gallery", "masks", "maps")]
    pictures = ["--out", str(paths[0]), "--masks-plot", str(paths[1]), "--maps", str(paths[2])]

    status = main(["--mixer", str(artefact), "--data", shard, *pictures, "--pairs", "3", "--device", "cpu"])

    assert status == 0
    for path in paths:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 100
        assert pixels.std() > 0.05


def test_policies_need_no_mixer(shard: str, tmp_path: Path):
    """Hand-crafted policies are drawn at the size of the data, with a plot of their masks."""
    paths = [tmp_path / "gallery.png", tmp_path / "masks.png"]
    flags = ["--data", shard, "--out", str(paths[0]), "--masks-plot", str(paths[1]), "--pairs", "2", "--device", "cpu"]

    status = main(["--policies", "mixup", "cutmix", *flags])

    assert status == 0
    assert all(path.exists() for path in paths)


def test_mixers_and_policies_stand_side_by_side(artefact: Path, shard: str, tmp_path: Path):
    """A single mixer is swept over lambda; each of several has one column for each lambda that is asked for."""
    usual = ["--data", shard, "--pairs", "1", "--device", "cpu"]
    runs = {
        "swept": ["--policies", "mixup"],
        "compared": ["--policies", "mixup", "cutmix", "--mixer", str(artefact)],
        "both": ["--policies", "mixup", "cutmix", "--mixer", str(artefact), "--lams", "0.2", "0.8"],
    }

    for name, flags in runs.items():
        assert main([*usual, *flags, "--out", str(tmp_path / f"{name}.png")]) == 0

    widths = {name: imread(tmp_path / f"{name}.png").shape[1] for name in runs}
    margin, cell, gap, group_gap = 10, 96, 3, 14
    assert widths == {
        "swept": 2 * margin + 6 * cell + 4 * gap + group_gap,
        "compared": 2 * margin + 4 * cell + 3 * group_gap,
        "both": 2 * margin + 7 * cell + 3 * gap + 3 * group_gap,
    }


def test_mixers_of_two_sizes_need_one_to_be_chosen(
    artefact: Path, shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Mixers trained on 16 and 32 pixels are compared once a size is given, and refused before."""
    half = (0.5, 0.5, 0.5)
    smaller = random_mixer(samix_spec(TINY_RESNET, mean=half, std=half, image_size=SIDE), seed=1, name="smaller")
    save_artefact(tmp_path / "smaller.safetensors", smaller, {"data": "none"})
    mixers = ["--mixer", str(artefact), str(tmp_path / "smaller.safetensors")]
    flags = [*mixers, "--data", shard, "--out", str(tmp_path / "gallery.png"), "--pairs", "1", "--device", "cpu"]

    refused, drawn = main(flags), main([*flags, "--image-size", "32"])

    assert (refused, drawn) == (2, 0)
    assert "trained on [16, 32] pixels; choose one size with --image-size" in capsys.readouterr().err


def test_a_server_shows_what_its_files_hold(artefact: Path, server: MixerServer, shard: str, tmp_path: Path):
    """A mixer of a running server is drawn and measured as it is from its file, but for the rounding of its answers."""
    usual = ["--data", shard, "--pairs", "2", "--device", "cpu"]
    homes = {"file": ["--mixer", str(artefact)], "server": ["--connect", server.addresses["grpc"]]}

    for name, flags in homes.items():
        pictures = ["--out", str(tmp_path / f"{name}.png"), "--masks-plot", str(tmp_path / f"{name}-masks.png")]
        assert main([*usual, *flags, *pictures]) == 0

    for kind in ("", "-masks"):
        drawn = [imread(tmp_path / f"{name}{kind}.png") for name in homes]
        assert np.abs(drawn[0] - drawn[1]).max() < (2.5 / 255 if not kind else 1.01)
        assert np.abs(drawn[0] - drawn[1]).mean() < 0.1 / 255


def test_all_mixers_of_a_server_stand_beside_those_from_files(artefact: Path, shard: str, tmp_path: Path):
    """Without names all are drawn, one of the same name as a file's too; with names only those."""
    usual = ["--data", shard, "--pairs", "1", "--device", "cpu", "--lams", "0.5"]
    margin, cell, group_gap = 10, 96, 14

    with serve(tiny_mixer(), tiny_mixer("zebra", seed=1)) as running:
        both = ["--connect", running.addresses["grpc"]]
        runs = {
            3: both,
            4: [*both, "--mixer", str(artefact)],
            2: [*both, "--mixer-name", "zebra"],
        }
        for columns, flags in runs.items():
            assert main([*usual, *flags, "--out", str(tmp_path / f"{columns}.png")]) == 0

    for columns in runs:
        width = imread(tmp_path / f"{columns}.png").shape[1]
        assert width == 2 * margin + columns * cell + (columns - 1) * group_gap


def test_says_what_the_server_has(server: MixerServer, shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A name that the server does not know is answered with those it knows."""
    flags = ["--connect", server.addresses["grpc"], "--mixer-name", "tiny", "lion", "--data", shard]

    status = main([*flags, "--out", str(tmp_path / "gallery.png")])

    assert status == 2
    assert "hosts no mixer lion; it has tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "nothing mixes: give --mixer FILE.safetensors, --connect HOST:PORT or --policies mixup cutmix"),
        (["--policies"], "nothing mixes"),
        (["--policies", "mixup", "--maps", "maps.png"], "--maps draws the inside of a learned mixer"),
        (["--connect", "localhost", "--maps", "maps.png"], "which a server does not show"),
        (["--policies", "mixup", "--mixer-name", "tiny"], "give --connect HOST:PORT with it"),
        (["--connect", "no address"], "a mixer's address is host:port"),
        (["--policies", "mixup", "--image-size", "-16"], "got -16"),
    ],
)
def test_refuses_without_a_mixer(
    shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
):
    """Without anything that mixes, or that has maps, there is one sentence with the cure and exit status 2."""
    status = main(["--data", shard, "--out", str(tmp_path / "gallery.png"), "--device", "cpu", *flags])

    errors = capsys.readouterr().err.splitlines()
    assert status == 2
    assert errors[-1].startswith("error: ")
    assert sentence in errors[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_policy_is_answered_with_the_known_ones(shard: str, capsys: pytest.CaptureFixture[str]):
    """A misspelt policy ends with status 2 and a list to choose from."""
    with pytest.raises(SystemExit) as ended:
        main(["--data", shard, "--out", "gallery.png", "--policies", "cutmux"])

    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert all(name in message for name in ("cutmux", "mixup", "cutmix", "none"))


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
        (["--maps", "maps.jpg"], "maps.jpg"),
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
