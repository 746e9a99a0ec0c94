from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import serve, tiny_mixer
from training import write_pictures

from mixer_server.app import MixerServer
from samix.mixing.artefact import save_artefact


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name small shards: three steps of digits_cpu for training, 30 pictures for evaluation."""
    folder = tmp_path_factory.mktemp("shards")
    train, val = write_pictures(folder / "train.tar", 200), write_pictures(folder / "val.tar", 30)
    return ["--data.train", train, "--data.val", val]


@pytest.fixture(scope="session")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixers") / "tiny.safetensors"
    save_artefact(path, tiny_mixer(), {"data": "none"})
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[MixerServer]:
    with serve(tiny_mixer()) as running:
        yield running
