"""One dataset that is served: its shards, the processes that decode them, and its epochs."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from mixer_server.datasets.config import DatasetsConfig
from mixer_server.datasets.epochs import Epochs
from mixer_server.datasets.gathering import Gathering, Kept, Maker, Plain, Wanted
from mixer_server.datasets.metrics import DatasetMetrics
from mixer_server.datasets.pictures import PictureMemory
from mixer_server.datasets.pool import DecodePool
from samix.errors import ShardError
from samix.mixer.v1 import dataset_pb2 as pb
from services.shards.index import ShardSet, open_shards
from services.shards.keeping import kept_view
from services.shards.shard import Shard, shard_name


class Dataset:
    """Makes batches for all subscriptions to it. Safe for threads; `start` it, and `close` it once they have ended."""

    def __init__(
        self, name: str, shards: ShardSet, config: DatasetsConfig, memory: PictureMemory, metrics: DatasetMetrics
    ) -> None:
        self.name = name
        self.info = pb.DatasetInfo(
            name=name,
            fingerprint=fingerprint_of(shards, config),
            num_samples=shards.total,
            num_shards=len(shards.shards),
            classes=shards.classes,
        )
        self.epochs = Epochs(shards, window=config.window, skip_budget=config.skip_budget)
        self._config = config
        self._memory = memory
        self.pool = DecodePool(name, shards, config.num_workers, metrics.decoder_restarts.labels(name).inc)
        """Decodes."""
        metrics.watch_dataset(name, lambda: self.pool.num_waiting)

    def start(self) -> None:
        """Start the processes that decode."""
        self.pool.start()

    def close(self) -> None:
        """End them."""
        self.pool.close()

    @contextmanager
    def maker(self, image_size: int, *, is_centred: bool) -> Iterator[Maker]:
        """Hold what makes pictures of that size, in pixels, during the block.

        Raises:
            ConfigError: if none can be made.
        """
        transform = self._config.transform(image_size, is_centred=is_centred)
        if not self._config.keeps_pictures:
            yield Plain(transform)
            return
        view = kept_view(transform)
        with self._memory.shelf((self.name, view.kept), view.kept.size) as shelf:
            yield Kept(view, image_size, shelf)

    def gather(self, maker: Maker, wanted: Wanted) -> Gathering:
        """Begin to gather the pictures of a batch."""
        gathering = Gathering(maker, wanted)
        if (found := maker.find(wanted)) is not None:
            gathering.answer.set_result(found)
            return gathering
        self.pool.add(gathering, [partial(gathering.make, rows) for rows in gathering.parts()])
        return gathering

    def forget(self, gathering: Gathering) -> None:
        """Begin no more of a batch that nobody wants."""
        self.pool.drop(gathering)


def open_dataset(
    name: str, pattern: str, config: DatasetsConfig, memory: PictureMemory, metrics: DatasetMetrics
) -> Dataset:
    """Find the shards of a dataset.

    Raises:
        ShardError: if they cannot be used.
    """
    try:
        shards = open_shards(pattern, cache=config.shard_cache(), tolerant=config.skip_budget > 0)
    except (ShardError, OSError) as error:
        raise ShardError(f"dataset {name!r} cannot be served: {error}") from error
    return Dataset(name, shards, config, memory, metrics)


def fingerprint_of(shards: ShardSet, config: DatasetsConfig) -> str:
    """Name the samples and all settings that batches follow from: 12 hexadecimal digits."""
    # Not by address: shards may move to another place.
    parts = [(shard_name(shard.address), _content(shard)) for shard in shards.shards]
    return hashlib.sha256(repr((parts, shards.samples, config.contents())).encode()).hexdigest()[:12]


def _content(shard: Shard) -> str | int | None:
    if shard.sha256 or shard.num_bytes is not None or shard.path is None:
        return shard.sha256 or shard.num_bytes
    return shard.path.stat().st_size  # no index tells more
