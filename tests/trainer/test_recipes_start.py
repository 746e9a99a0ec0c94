"""Every recipe starts: one step of its real model, optimiser and augmentation, on few photographs."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from serving import serve, tiny_mixer
from training import summary_of, write_shard

from mixer_server.app import MixerServer
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import resnet18_spec
from trainer.cli import main
from trainer.model import build_classifier
from trainer.recipes import RECIPES

PICTURES = 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def photograph(number: int) -> bytes:
    """Encode a JPEG of smooth colours with noise, upright or not."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((320, 240) if number % 2 else (240, 320), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photographs")
    path = write_shard(folder / "photographs.tar", {n: (photograph(n), n) for n in range(PICTURES)})
    return ["--data.train", path, "--data.val", path]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[bool, MixerServer]]:
    """Mixer servers, for photographs or not."""
    with serve(tiny_mixer()) as small, serve(random_mixer(resnet18_spec(), seed=0, name="photographs")) as large:
        yield {False: small, True: large}


@pytest.mark.parametrize("name", RECIPES)
def test_starts(name: str, shards: list[str], servers: dict[bool, MixerServer], tmp_path: Path):
    """A step on random weights, mixed as the recipe has it, leaves a finite loss, a checkpoint and a summary."""
    _, config = RECIPES[name]
    flags = [
        "--data.global-batch",
        str(PICTURES),
        "--data.num-workers",
        "0",
        "--epochs",
        "1",
        "--optimiser.warmup-epochs",
        "0",
    ]
    endpoint = servers[config.data.image_size > 64].addresses["grpc"]
    flags += ["--mixing.endpoint", endpoint, "--mixing.deadline-s", "60", "--device", "cpu"]
    if not isinstance(config.model.weights, str):
        weights = tmp_path / "weights.safetensors"
        model = build_classifier(replace(config.model, weights=""), config.data.num_classes, seed=0)
        save_file({key: value.contiguous() for key, value in model.backbone.state_dict().items()}, weights)
        flags += ["--model.weights", str(weights)]

    status = main([name, *shards, *flags, "--metrics.port", "0", "--metrics.linger-s", "0", "--out", str(tmp_path)])

    assert status == 0
    summary = summary_of(tmp_path)
    assert (summary["steps"], summary["images"], summary["fallbacks"]) == (1, PICTURES, 0)
    assert np.isfinite(summary["last_loss"])
    assert torch.load(next((tmp_path / "checkpoints").glob("epoch-*")), weights_only=True)["step"] == 1
