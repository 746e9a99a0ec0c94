"""Write a data set as WebDataset shards (`samix shards SOURCE --out DIR`), or check some (`--check SHARDS`)."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from samix.errors import ConfigError
from services.cli import program
from services.config import parse_config
from services.logs import LogFormat, setup_logging
from services.shards.check import check_shards, describe
from services.shards.patterns import escape, expand
from services.shards.source_names import open_source
from services.shards.writer import write_shards

log = logging.getLogger(__name__)

LOG_EVERY = 10_000


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Write a data set as WebDataset shards with an index, or check shards that are there."""

    source: tyro.conf.Positional[str] = ""
    """`digits` (scikit-learn's 1797 handwritten digits), `imagefolder:PATH` (PATH/[SPLIT/]CLASS/*.jpg), or
    `cifar10:PATH` and `cifar100:PATH` (the official .tar.gz, python version, or its folder)."""
    out: Path | None = None
    """Folder of the shards; made if needed."""
    check: tuple[str, ...] = ()
    """Shards to check instead, to the last picture: paths, globs, patterns, URLs. Ends with 0 if all is well, or 2."""
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

    def __post_init__(self) -> None:
        if self.check and (self.source or self.out):
            raise ConfigError(f"--check reads shards and writes nothing; leave out {self.source or '--out'}")
        if not self.check and not (self.source and self.out):
            given = self.source or (f"--out {self.out}" if self.out else "nothing")
            raise ConfigError(f"write `samix shards SOURCE --out DIR` or `samix shards --check SHARDS`, got {given}")


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    config = parse_config(ShardsConfig, "shards", argv)
    setup_logging(config.log_format)
    return _check(config.check) if config.check else _write(config)


def _write(config: ShardsConfig) -> int:
    assert config.out is not None  # __post_init__ has seen to it
    source = open_source(config.source, seed=config.seed, digits_size=config.digits_size)
    with _progress(sum(map(len, source.splits.values())), "samples", LOG_EVERY) as on_sample:
        index = write_shards(
            source,
            config.out,
            samples_per_shard=config.samples_per_shard,
            overwrite=config.overwrite,
            on_sample=on_sample,
        )
    print(_summary(index, config.out))
    return 0


def _check(patterns: Sequence[str]) -> int:
    total = len(expand(patterns))
    with _progress(total, "shards", max(1, total // 20)) as on_shard:
        report, classes = check_shards(patterns, on_shard=on_shard)
    print(describe(report, classes))
    return 2 if report.problems else 0


@contextmanager
def _progress(total: int, unit: str, every: int) -> Iterator[Callable[[], object]]:
    if sys.stderr.isatty():
        with tqdm(total=total, unit=f" {unit}") as bar:
            yield bar.update
        return
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done % every == 0:
            log.info("shards_progress", extra={unit: done, "of": total})

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
