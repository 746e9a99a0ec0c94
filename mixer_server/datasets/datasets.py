"""All datasets of a server, by name."""

from collections.abc import Mapping

from mixer_server.datasets.config import DatasetsConfig
from mixer_server.datasets.dataset import Dataset, open_dataset
from mixer_server.datasets.metrics import DatasetMetrics
from mixer_server.datasets.pictures import PictureMemory
from samix.errors import MixerNotFound
from samix.mixer.v1 import dataset_pb2 as pb


class Datasets:
    """The datasets that `open_datasets` found. `start`, then `close`."""

    def __init__(self, datasets: Mapping[str, Dataset], config: DatasetsConfig, metrics: DatasetMetrics) -> None:
        self.config = config
        """How they are read and streamed."""
        self.metrics = metrics
        """What they count."""
        self._datasets = datasets

    @property
    def names(self) -> list[str]:
        """Sorted."""
        return sorted(self._datasets)

    def find(self, name: str) -> Dataset:
        """Look a dataset up.

        Raises:
            MixerNotFound: says what there is.
        """
        if name not in self._datasets:
            known = ", ".join(map(repr, self.names))
            raise MixerNotFound(
                f"no dataset is called {name!r} here; this server has {known}"
                if known
                else f"no dataset is called {name!r} here; this server has none, start it with --dataset NAME=SHARDS"
            )
        return self._datasets[name]

    def describe(self) -> list[pb.DatasetInfo]:
        """Describe all, sorted by name."""
        return [self._datasets[name].info for name in self.names]

    def start(self) -> None:
        """Start the processes that decode."""
        for dataset in self._datasets.values():
            dataset.start()

    def close(self) -> None:
        """End them."""
        for dataset in self._datasets.values():
            dataset.close()


def open_datasets(patterns: Mapping[str, str], config: DatasetsConfig, metrics: DatasetMetrics) -> Datasets:
    """Find the shards of all datasets.

    Args:
        patterns: for each name its shards, as `open_shards` takes them.
        config: how they are read.
        metrics: count.

    Raises:
        ShardError: if some cannot be used.
    """
    memory = PictureMemory(config.memory_mib << 20)
    metrics.watch_memory(lambda: memory.num_bytes)
    datasets = {name: open_dataset(name, pattern, config, memory, metrics) for name, pattern in patterns.items()}
    return Datasets(datasets, config, metrics)
