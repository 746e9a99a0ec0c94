"""Ready batches of a server's dataset as a torch dataset: for loops that are written around a DataLoader.

    dataset = RemoteDataset("host:8001", "imagenet-train", mixer="samix-r50", batch_size=64, image_size=224)
    for epoch in range(100):
        dataset.set_epoch(epoch)
        for batch in DataLoader(dataset, batch_size=None, pin_memory=True):
            ...

Batches are read ahead by a thread, so the loader needs no worker process. With one it works as well; of more each would
have to be a consumer of its own, and the epoch's order would depend on their number, so they are refused.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch.utils.data import IterableDataset, get_worker_info

from samix.client.config import ClientConfig
from samix.client.datasets.batch import ReadyBatch
from samix.client.datasets.cursor import Place, cursor_message, new_token
from samix.client.datasets.subscription import SubscribeOptions, Subscription
from samix.client.remote import RemoteMixer, connect
from samix.errors import InputError

_DEFAULT_CONFIG = ClientConfig()


class RemoteDataset(IterableDataset[ReadyBatch]):
    """One consumer of a server's dataset; connects when it is iterated, in the process that does.

    Each iteration is one epoch, or the rest of one whose state was loaded. The epoch is that of `set_epoch`, and stays
    until it is set again. Its state is for one process: where a worker reads, keep `batch.cursor`, or let torchdata's
    StatefulDataLoader ask the worker.
    """

    def __init__(
        self,
        target: str,
        dataset: str,
        *,
        mixer: str | None,
        version: str = "",
        config: ClientConfig = _DEFAULT_CONFIG,
        **options: Unpack[SubscribeOptions],
    ) -> None:
        """Say what is read; nothing is sent yet.

        Args:
            target: address of the server, or of several with commas; see `connect`.
            dataset: its name there.
            mixer: which mixer mixes the batches; None leaves the pictures as they are.
            version: weights version to insist on; empty takes the one that is loaded.
            config: deadlines, limits and retries of the client.
            options: as of `RemoteMixer.subscribe`. Without `consumer` and `num_consumers` they are rank and world size
                of torch.distributed, and 0 of 1 where that is not in use.

        Raises:
            InputError: if an option cannot be, or the ranks are not known yet.
        """
        consumer, num_consumers = _consumer(options)
        cursor = options.pop("cursor", None)
        epoch = options.get("epoch", 0 if cursor is None else cursor_message(cursor).epoch)
        self._target = target
        self._dataset = dataset
        self._mixer = mixer
        self._version = version
        self._config = config
        self._options: SubscribeOptions = {**options, "consumer": consumer, "num_consumers": num_consumers}
        with self._connect() as remote:
            self._subscribe(remote, epoch)  # refuses what cannot be here, rather than in a worker
        # Shared with worker processes, which may live on from epoch to epoch and see nothing else of this one.
        self._epoch = torch.tensor(epoch).share_memory_()
        self._is_read_by_worker = torch.tensor(False).share_memory_()
        self._place = Place(epoch=epoch, token=new_token(), cursor=None if cursor is None else dict(cursor))
        self._is_loaded = True

    def __iter__(self) -> Iterator[ReadyBatch]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise InputError(
                f"num_workers is {worker.num_workers}, and a RemoteDataset is one consumer: a thread of its own reads "
                "ahead, so use num_workers=0, or 1"
            )
        if worker is not None:
            self._is_read_by_worker.fill_(True)
        return self._iterate()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration reads; worker processes that are there hear it too."""
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch that was handed out, as plain values: fit for JSON and torch.save.

        Raises:
            InputError: if a worker process reads, which alone knows its place.
        """
        self._check_process()
        epoch = int(self._epoch)
        return (self._place if self._place.epoch == epoch else Place(epoch=epoch, token=self._place.token)).state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state_dict` was taken, unless `set_epoch` names another epoch.

        Raises:
            InputError: if it is no state, or a worker process reads already.
        """
        self._check_process()
        self._place = Place.of_state(state)
        self._is_loaded = True
        self._epoch.fill_(self._place.epoch)

    def _iterate(self) -> Iterator[ReadyBatch]:
        epoch = int(self._epoch)
        goes_on, self._is_loaded = self._is_loaded and self._place.epoch == epoch, False
        if not goes_on:
            self._place = Place(epoch=epoch, token=self._place.token)
        with self._connect() as remote, self._subscribe(remote, epoch) as subscription:
            subscription.load_state_dict(self._place.state())
            for batch in subscription:
                self._place = replace(self._place, cursor=batch.cursor)
                yield batch

    def _connect(self) -> RemoteMixer:
        return connect(self._target, mixer=self._mixer or "", version=self._version, config=self._config)

    def _subscribe(self, remote: RemoteMixer, epoch: int) -> Subscription:
        options: SubscribeOptions = {**self._options, "epoch": epoch}
        return remote.subscribe(self._dataset, mix=self._mixer is not None, **options)

    def _check_process(self) -> None:
        if get_worker_info() is None and bool(self._is_read_by_worker):
            raise InputError(
                "this dataset is read by a worker process, which alone knows its place: keep `batch.cursor` of the "
                "last batch for RemoteDataset(..., cursor=...), or use num_workers=0 or torchdata's StatefulDataLoader"
            )


def _consumer(options: SubscribeOptions) -> tuple[int, int]:
    """Say which consumer of how many this is."""
    given = [name for name in ("consumer", "num_consumers") if name in options]
    if len(given) == 2:
        return options["consumer"], options["num_consumers"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    if given:
        raise InputError(f"consumer and num_consumers belong together, got {given[0]} alone; give both, or neither")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but torch.distributed is not initialised: every rank would be "
            "consumer 0; initialise it first, or give consumer and num_consumers"
        )
    return 0, 1
