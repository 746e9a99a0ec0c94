"""Small shards that can be learnt, what a server counted, and a look at what still runs."""

import contextlib
import io
import os
import select
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import WAIT_S

from mixer_server.app import MixerServer
from services.shards.dataset import Batch
from trainer.world import World

SIDE = 16
NUM_CLASSES = 10
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


def images_mixed(server: MixerServer) -> float:
    """Images that a server mixed in its life."""
    samples = (sample for family in server.metrics.registry.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "mixer_images_total")


def page_value(page: str, family: str) -> float:
    """Sum the samples of one name on a metrics page."""
    families = text_string_to_metric_families(page)
    return sum(sample.value for found in families for sample in found.samples if sample.name == family)


def torchrun(*flags: str) -> list[str]:
    """Complete the flags of `python -m torch.distributed.run` for two ranks of the trainer."""
    launch = ["--standalone", "--nproc-per-node", "2", "-m", "trainer", "digits_cpu"]
    return [*launch, "--metrics.port", "0", "--metrics.linger-s", "0", "--device", "cpu", *flags]


def processes_of(word: str) -> dict[int, str]:
    """Find the living processes whose command line holds a word, such as the folder of a run."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if word in command:
                found[int(path.parent.name)] = command
    return found


def survivors(word: str) -> dict[int, str]:
    """Give such processes WAIT_S to end, each, and return those that do not."""
    for process_id in processes_of(word):
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(process_id)
            select.select([process], [], [], WAIT_S)
            os.close(process)
    return processes_of(word)
