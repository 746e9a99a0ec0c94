"""Worker processes that answer requests for batches, in the order of the requests."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import Any, Self

import torch
from torch.utils.data import DataLoader

from services.shards.config import LoadingConfig
from services.shards.dataset import Answer, Batch, BatchRequest, ShardDataset
from services.shards.read_ahead import ReadAhead
from services.signals import STOP_SIGNALS, StopRequest


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
            multiprocessing_context=_worker_context() if num_workers else None,
            worker_init_fn=_leave_signals_to_parent,
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


def _worker_context() -> ForkServerContext:
    # A forked copy of a process that uses gRPC crashes or hangs: grpc/grpc#32992. The fork server never saw gRPC, and
    # imports torch once for all workers.
    context = get_context("forkserver")
    context.set_forkserver_preload(["services.shards.dataset"])
    resource_tracker.ensure_running()  # unblocks what the fork server is to inherit, if it is started by that
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _leave_signals_to_parent(_worker: int) -> None:
    """Outlive a Ctrl-C or SIGTERM that reaches every process of a run: its program needs batches until it has saved.

    Both are blocked since the fork server began. A second SIGTERM is meant, such as torch's to a worker that is stuck.
    """
    _follow_parent()
    request = StopRequest()
    signal.signal(signal.SIGTERM, request.receive)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _follow_parent() -> None:
    # torch watches the fork server instead, which lives as long as its workers: a killed trainer would leave them all.
    parent = parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True, name="follow-parent").start()


def _as_is(answer: Any) -> Any:
    return answer
