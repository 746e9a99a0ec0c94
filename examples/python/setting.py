"""What the examples share, and you have already: pictures, and a mixer from the command line."""

import argparse
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from samix import connect, load_mixer
from samix.mixing.protocol import Mixer

BATCH_SIZE = 64


def parse_options(description: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line: where the pictures are, which mixer, how many steps."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tar shards *-train-*.tar and *-test-*.tar")
    parser.add_argument("--mixer", required=True, help="FILE.safetensors, or HOST:PORT of a server")
    parser.add_argument("--num-classes", type=int, default=20, help="of the pictures (default: 20)")
    parser.add_argument("--steps", type=int, default=100, help="of training (default: 100)")
    return parser.parse_args(arguments)


def open_mixer(name: str) -> Mixer:
    """Load a mixer into this process, or connect to one: everything after this line is the same."""
    return load_mixer(name) if name.endswith(".safetensors") else connect(name)


class Pictures(Dataset):
    """Tar shards in memory, KEY.png or KEY.jpg beside KEY.cls; enough for small pictures."""

    def __init__(
        self, data: Path, split: str, transform: Callable[[Tensor, int], Any] = lambda image, label: (image, label)
    ):
        self._samples = [sample for path in sorted(data.glob(f"*-{split}-*.tar")) for sample in read_shard(path)]
        if not self._samples:
            raise ValueError(f"no shards *-{split}-*.tar in {data}; give --data a folder that samix shards wrote")
        self._transform = transform

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        picture, label = self._samples[index]
        image = pil_to_tensor(Image.open(io.BytesIO(picture)).convert("RGB"))  # uint8 [3, H, W]
        return self._transform(image, label)


def read_shard(path: Path) -> list[tuple[bytes, int]]:
    """Read the encoded pictures and the labels of one tar file."""
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # pyright: ignore
    pictures = {name.rpartition(".")[0]: member for name, member in members.items() if not name.endswith(".cls")}
    return [(picture, int(members[f"{key}.cls"])) for key, picture in pictures.items()]


def training_loader(pictures: Pictures, steps: int, **settings: Any) -> DataLoader:
    """Load shuffled batches for so many steps, over as many epochs as it takes."""
    sampler = RandomSampler(pictures, num_samples=steps * BATCH_SIZE)
    return DataLoader(pictures, BATCH_SIZE, sampler=sampler, **settings)


def normalise(image: Tensor) -> Tensor:
    """Do what most pipelines do: floats, less ImageNet's mean, divided by its deviation."""
    return normalize(image.float() / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def report(losses: list[float]) -> None:
    """Print how the loss fell."""
    part = max(1, len(losses) // 5)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    print(f"steps {len(losses)}, mean loss of the first {part}: {first:.4f}, of the last {part}: {last:.4f}")
