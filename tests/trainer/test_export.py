"""A trained mixer leaves its run measured, with its origin, and with a warning where it is not worth using."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training import make_batch

from samix.mixing.artefact import load_mixer, read_provenance
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import tiny_spec
from services.shards.dataset import Batch
from trainer.export import Origin, export_mixer, first_pictures

ORIGIN = Origin(recipe="digits_cpu", data="gs://bucket/train-{000..003}.tar", epochs=7, seed=3)


def pictures() -> torch.Tensor:
    return torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_an_artefact_tells_where_it_comes_from(tmp_path: Path):
    """The file loads, and its provenance holds origin and mask quality; data by name, without the way to it."""
    path, mixer = tmp_path / "mine.safetensors", random_mixer(tiny_spec(), seed=0, name="mine")

    figures = export_mixer(path, mixer, pictures(), ORIGIN)

    provenance = read_provenance(path)
    assert load_mixer(path).version == mixer.version
    expected = {"recipe": "digits_cpu", "data": "train-{000..003}.tar", "epochs": "7", "seed": "3"}
    assert provenance.items() >= expected.items()
    assert provenance["lam_error"] == f"{figures['lam_error']:.4f}"
    assert provenance["spread"] == f"{figures['spread']:.4f}"


def test_a_mixer_not_worth_using_is_remarked_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Masks that are constant, or that ignore lam, are written and warned of."""
    with caplog.at_level(logging.WARNING, "trainer"):
        export_mixer(tmp_path / "flat.safetensors", random_mixer(tiny_spec(), seed=0, name="flat"), pictures(), ORIGIN)

    (warning,) = caplog.records
    assert warning.message == "mixer_not_usable"
    assert (vars(warning)["is_trivial"], vars(warning)["ignores_lam"]) == (True, True)


@pytest.mark.parametrize(("sizes", "count", "expected"), [([4, 4, 4], 6, 6), ([4, 4], 8, 8), ([3], 8, 3)])
def test_pictures_are_the_first(sizes: list[int], count: int, expected: int):
    """Up to `count` pictures are collected in their order, and no batch more is asked for than they need."""
    taken = []

    def batches() -> Iterator[Batch]:
        for number, size in enumerate(sizes):
            taken.append(number)
            yield make_batch(size, value=number)

    found = first_pictures(batches(), count)

    assert found.shape[0] == expected
    assert found[:, 0, 0, 0].tolist() == [number for number, size in enumerate(sizes) for _ in range(size)][:count]
    assert len(taken) == min(len(sizes), -(-count // sizes[0]))
