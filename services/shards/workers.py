"""Worker processes that answer requests for batches, in the order of the requests."""

from collections.abc import Callable, Generator, Iterator
from typing import Any, Self

import torch
from torch.utils.data import DataLoader

from services.shards.config import LoadingConfig
from services.shards.dataset import Answer, Batch, BatchRequest, ShardDataset
from services.shards.processes import leave_signals_to_parent, worker_context
from services.shards.read_ahead import ReadAhead


class BatchLoader:
    """Iterates over the batches of its requests, read in this process or in workers that live until `close`.

    It owns the workers, the open shards and the fetching ahead: use it in a `with`, or close it.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        config: LoadingConfig,
        requests: list[BatchRequest],
        *,
        read_ahead: ReadAhead,
        pin_memory: bool,
    ) -> None:
        self._dataset = dataset
        self._config = config
        self._read_ahead = read_ahead
        self._pin_memory = pin_memory
        self._sampler = _Sampler(requests, read_ahead.reached)
        self._loader: DataLoader[Answer] | None = None
        self._iteration: Generator[Batch, None, None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        self._iteration = self._batches()
        return self._iteration

    def close(self) -> None:
        """Stop the workers and close the shards; iterating again starts anew."""
        if self._iteration is not None:
            self._iteration.close()  # an unfinished one, perhaps held by a traceback, refers to the workers
        self._iteration = None
        self._loader = None  # torch stops its workers when the last reference goes
        self._read_ahead.close()
        self._dataset.close()

    def _batches(self) -> Generator[Batch, None, None]:
        self._read_ahead.start([request.positions for request in self._sampler.requests])
        self._loader = self._loader or self._start()
        for answer in self._loader:
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def _start(self) -> DataLoader[Answer]:
        num_workers = self._config.num_workers
        return DataLoader(
            self._dataset,
            batch_size=None,  # a request is a whole batch
            sampler=self._sampler,
            collate_fn=_as_is,
            num_workers=num_workers,
            prefetch_factor=self._config.prefetch if num_workers else None,
            persistent_workers=num_workers > 0,
            multiprocessing_context=worker_context() if num_workers else None,
            worker_init_fn=leave_signals_to_parent,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # else it would draw from torch's global one
        )


class _Sampler:
    """Feeds the DataLoader; persistent workers need one object whose content changes."""

    def __init__(self, requests: list[BatchRequest], reached: Callable[[int], None]) -> None:
        self.requests = requests
        self._reached = reached

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[BatchRequest]:
        for number, request in enumerate(self.requests):
            self._reached(number)
            yield request


def _as_is(answer: Any) -> Any:
    return answer
