"""Shards that can be learnt, digits, ranks in processes of their own, what a server counted, and what still runs."""

import contextlib
import io
import json
import os
import select
import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import WAIT_S
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from mixer_server.app import MixerServer
from services.shards.dataset import Batch
from trainer.world import World, join_world

SIDE = 16
NUM_CLASSES = 10
OPENMIXUP_FLAGS = [
    *["--online.mode", "openmixup", "--online.no-per-sample-lam", "--online.mask-schedule", "constant"],
    *["--online.block.no-learnable-gamma", "--online.block.activation", "elu", "--objective.clean-weight", "1"],
]
"""The public reference's way of training online, as flags of a recipe that has the papers'."""
ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def picture(number: int) -> bytes:
    """Draw a PNG of SIDE x SIDE pixels whose grey tells its class, number % NUM_CLASSES, under some noise."""
    grey = 20 + 23 * (number % NUM_CLASSES)
    noise = np.random.default_rng(number).integers(-10, 11, (SIDE, SIDE, 3))
    file = io.BytesIO()
    Image.fromarray((grey + noise).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, samples: dict[int, tuple[bytes, int]]) -> str:
    """Write one shard of (encoded picture, label) by number; returns its path."""
    with tarfile.open(path, "w") as tar:
        for number, (image, label) in samples.items():
            for extension, content in (("png", image), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(path)


def write_pictures(path: Path, count: int) -> str:
    """Write a shard of `count` pictures; returns its path."""
    return write_shard(path, {number: (picture(number), number % NUM_CLASSES) for number in range(count)})


def make_batch(size: int = 4, *, value: int = 0) -> Batch:
    """Make a batch of images of one grey, whose labels are that value too."""
    return Batch(
        images=torch.full((size, 3, SIDE, SIDE), value, dtype=torch.uint8),
        labels=torch.full((size,), value),
        positions=torch.arange(size),
    )


def summary_of(folder: Path) -> dict[str, Any]:
    """Read the summary of a run."""
    return json.loads((folder / "summary.json").read_text())


def events_of(folder: Path, event: str = "epoch") -> list[dict[str, Any]]:
    """Read the events of one kind from the log of a run."""
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == event]


def newest_checkpoint(folder: Path) -> Path:
    """Find the checkpoint that a run would go on from."""
    return max((folder / "checkpoints").glob("epoch-*.pt"))


def images_mixed(server: MixerServer) -> float:
    """Images that a server mixed in its life."""
    samples = (sample for family in server.metrics.registry.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "mixer_images_total")


def page_value(page: str, family: str) -> float:
    """Sum the samples of one name on a metrics page."""
    families = text_string_to_metric_families(page)
    return sum(sample.value for found in families for sample in found.samples if sample.name == family)


def torchrun(*flags: str, ranks: int = 2, restarts: int = 0) -> list[str]:
    """Complete the flags of `python -m torch.distributed.run` for some ranks of the trainer."""
    elastic = ["--standalone", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    launch = [*elastic, "-m", "trainer", "digits_cpu"]
    return [*launch, "--metrics.port", "0", "--metrics.linger-s", "0", "--device", "cpu", *flags]


def spawn_two_ranks(target: Callable[..., None], *args: Any) -> None:
    """Run target(rank, port, *args) in two processes; a failure of one is raised here."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mp.spawn(target, (port, *args), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]


@contextmanager
def join_as(rank: int, port: int) -> Iterator[World]:
    """Join the world of `spawn_two_ranks`, as torchrun would have set it up."""
    environ = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, str(value))
        with join_world("cpu") as world:
            yield world


def processes_of(word: str, variable: str = "") -> dict[int, str]:
    """Find the living processes whose command line holds a word, such as the folder of a run.

    Args:
        word: may be empty.
        variable: NAME=VALUE that must stand in their environment; empty asks for none.
    """
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile, or of somebody else
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if word in command and (not variable or variable in _environment(path.parent)):
                found[int(path.parent.name)] = command
    return found


def survivors(word: str, variable: str = "") -> dict[int, str]:
    """Give such processes WAIT_S to end, each, and return those that do not."""
    for process_id in processes_of(word, variable):
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(process_id)
            select.select([process], [], [], WAIT_S)
            os.close(process)
    return processes_of(word, variable)


def _environment(process: Path) -> list[str]:
    return (process / "environ").read_text(errors="replace").split("\0")


def digit_pictures(count: int, side: int) -> Tensor:
    """Show scikit-learn's first handwritten digits at `side` pixels, float [count, 3, side, side] in [0, 1]."""
    pixels, _ = load_digits(return_X_y=True)
    pictures = torch.from_numpy(pixels[:count]).float().view(-1, 1, 8, 8) / 16
    return F.interpolate(pictures, (side, side), mode="bicubic").clamp(0, 1).expand(-1, 3, -1, -1)
