"""The examples run as they stand: a few steps each in the fast tests, a hundred with falling loss in the slow ones."""

from importlib import import_module
from pathlib import Path

import pytest
from serving import serve
from shard_making import real_data, write_noise_shards

from samix import load_mixer

ROOT = Path(__file__).parents[2]
MIXER = ROOT / "mixers/samix-cifar100-20c-small.safetensors"
EXAMPLES = sorted(path.stem for path in (ROOT / "examples/python").glob("*.py") if path.stem != "setting")
NEEDS = {"lightning_callback": ["lightning"], "huggingface_trainer": ["transformers", "accelerate"]}

pytestmark = [
    # Of Lightning and transformers themselves, with this torch and this machine.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
]


@pytest.fixture(autouse=True)
def _beside_the_examples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "examples/python")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for split in ("train", "test"):
        noise = tmp_path_factory.mktemp(split)
        write_noise_shards(noise, [48, 32], num_classes=20, side=32)
        for path in noise.glob("*.tar"):
            path.rename(folder / path.name.replace("noise", f"noise-{split}"))
    return folder


def run(example: str, data: Path, mixer: str, steps: int) -> list[float]:
    for package in NEEDS.get(example, []):
        pytest.importorskip(package, reason=f"{package} is not installed; it comes with the extra [examples]")
    arguments = ["--data", str(data), "--mixer", mixer, "--steps", str(steps)]
    return import_module(example).main(arguments)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: str, shards: Path, capsys: pytest.CaptureFixture[str]):
    """Each example trains a few steps on made pictures and says how the loss went."""
    losses = run(example, shards, str(MIXER), 2)

    assert len(losses) == 2
    assert "mean loss of the first 1" in capsys.readouterr().out


def test_an_example_runs_with_a_server(shards: Path):
    """An address instead of a file is all that changes for a remote mixer."""
    with serve(load_mixer(MIXER)) as server:
        losses = run("plain_loop", shards, server.addresses["grpc"], 2)

    assert losses == pytest.approx(run("plain_loop", shards, str(MIXER), 2), abs=1e-2)


def test_a_folder_without_shards_is_refused(tmp_path: Path):
    """A wrong --data is told by its name, with the cure, before anything is trained."""
    with pytest.raises(ValueError, match=rf"no shards \*-train-\*.tar in {tmp_path}; give --data"):
        run("plain_loop", tmp_path, str(MIXER), 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_learns(example: str):
    """In a hundred steps on pictures of 20 classes of CIFAR-100 the loss falls."""
    losses = run(example, real_data() / "cifar100-20c", str(MIXER), 100)

    assert len(losses) == 100
    assert sum(losses[-20:]) < sum(losses[:20])
