"""Write a data set as WebDataset shards: `samix shards SOURCE --out DIR`."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from services.cli import program
from services.config import parse_config
from services.logs import LogFormat, setup_logging
from services.shards.index import escape
from services.shards.sources import Source, open_source
from services.shards.writer import write_shards

log = logging.getLogger(__name__)

LOG_EVERY = 10_000


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Write a data set as WebDataset shards with an index."""

    source: tyro.conf.Positional[str]
    """`digits` (scikit-learn's 1797 handwritten digits) or `imagefolder:PATH` (PATH/[SPLIT/]CLASS/*.jpg)."""
    out: Path
    """Folder of the shards; made if needed."""
    samples_per_shard: int = 1000
    """Samples of a shard; 1000 photographs are about 100 MB."""
    seed: int = 0
    """Of the split of the digits and of the order of the pictures."""
    digits_size: int = 32
    """Side of the digits, pixels; 8 keeps them as they are."""
    overwrite: bool = False
    """Replace another set of shards in --out."""
    log_format: LogFormat = "text"
    """Log lines for people or for machines."""


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the verb."""
    config = parse_config(ShardsConfig, "shards", argv)
    setup_logging(config.log_format)
    source = open_source(config.source, seed=config.seed, digits_size=config.digits_size)
    with _progress(source) as on_sample:
        index = write_shards(
            source,
            config.out,
            samples_per_shard=config.samples_per_shard,
            overwrite=config.overwrite,
            on_sample=on_sample,
        )
    print(_summary(index, config.out))


@contextmanager
def _progress(source: Source) -> Iterator[Callable[[], object]]:
    total = sum(map(len, source.splits.values()))
    if sys.stderr.isatty():
        with tqdm(total=total, unit=" samples") as bar:
            yield bar.update
        return
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done % LOG_EVERY == 0:
            log.info("shards_progress", extra={"samples": done, "of": total})

    yield count


def _summary(index: dict[str, Any], out: Path) -> str:
    lines = [f"{out}: {index['name']}, {len(index['classes'])} classes"]
    for split, content in index["splits"].items():
        megabytes = sum(shard["bytes"] for shard in content["shards"]) / 1e6
        lines.append(
            f"  {split:<6}{content['samples']:>9} samples in {len(content['shards'])} shards, {megabytes:.1f} MB:"
            f" {escape(out / index['name'])}-{split}-*.tar"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
