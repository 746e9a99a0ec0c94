import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from training import serve, tiny_mixer, write_pictures

from mixer_server.app import MixerServer
from samix.mixing.artefact import save_artefact


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Take back what the main of a program does to logs and warnings."""
    root = logging.getLogger()
    before, level = [*root.handlers], root.level
    yield
    logging.captureWarnings(False)
    for handler in [*root.handlers]:
        if handler not in before:
            root.removeHandler(handler)
    root.setLevel(level)


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
