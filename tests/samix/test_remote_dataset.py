"""RemoteDataset within torch's DataLoader: epochs, places, ranks and workers."""

import json
import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scripted_datasets import Break, ScriptedDatasets, serving_datasets
from torch.utils.data import DataLoader

from samix.client.datasets.batch import ReadyBatch
from samix.errors import InputError, StaleCursor
from samix.remote_dataset import RemoteDataset

SIDE = 16
OPTIONS: dict[str, Any] = {"mixer": None, "batch_size": 4, "image_size": SIDE}
KEYS = [str(sample) for sample in range(20)]


@pytest.fixture
def running() -> Iterator[tuple[ScriptedDatasets, str]]:
    servicer = ScriptedDatasets()
    with serving_datasets(servicer) as target:
        yield servicer, target


def remote(target: str, **options: Any) -> RemoteDataset:
    return RemoteDataset(target, "made", mixer=None, batch_size=4, image_size=SIDE, **options)


def load(dataset: RemoteDataset, **options: Any) -> DataLoader[ReadyBatch]:
    return DataLoader(dataset, batch_size=None, **options)


def keys_of(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def test_a_loader_gives_the_epoch_that_was_set(running: tuple[ScriptedDatasets, str]):
    """Each iteration is one epoch, of the number that was set last, and the same one again unless it is set."""
    servicer, target = running
    dataset = remote(target, seed=5)
    loader = load(dataset)

    dataset.set_epoch(3)
    epochs = [keys_of(loader), keys_of(loader)]
    dataset.set_epoch(4)
    epochs.append(keys_of(loader))

    assert epochs == [KEYS] * 3
    assert [asked.epoch for asked in servicer.asked] == [3, 3, 4]
    assert {asked.seed for asked in servicer.asked} == {5}


def test_a_state_goes_on_in_another_process_of_the_same_consumer(running: tuple[ScriptedDatasets, str]):
    """A loader that goes on with the state of a broken one gives what was not handed out; the next epoch is whole."""
    servicer, target = running
    dataset = remote(target)
    dataset.set_epoch(2)
    came = []
    for batch in load(dataset):
        came.append(batch)
        if len(came) == 2:
            break
    state = json.loads(json.dumps(dataset.state_dict()))

    revived = remote(target)
    revived.load_state_dict(state)
    revived.set_epoch(2)
    rest = keys_of(load(revived))
    revived.set_epoch(3)
    following = keys_of(load(revived))

    assert keys_of(came) + rest == KEYS
    assert following == KEYS
    assert [(asked.epoch, asked.cursor.num_batches) for asked in servicer.asked] == [(2, 0), (2, 2), (3, 0)]
    assert len({asked.token for asked in servicer.asked}) == 1


def test_another_epoch_forgets_the_place(running: tuple[ScriptedDatasets, str]):
    """A state of one epoch does not shorten another one that is asked for."""
    dataset = remote(running[1])
    next(iter(dataset))
    state = dataset.state_dict()

    revived = remote(running[1])
    revived.load_state_dict(state)
    revived.set_epoch(1)

    assert revived.state_dict()["cursor"] is None
    assert keys_of(revived) == KEYS


def test_a_batchs_cursor_is_enough(running: tuple[ScriptedDatasets, str]):
    """A dataset that is made with a cursor goes on in its epoch, behind its batch."""
    dataset = remote(running[1], epoch=7)
    first = next(iter(dataset))

    revived = remote(running[1], cursor=first.cursor)

    assert keys_of(revived) == KEYS[4:]
    assert running[0].asked[1].epoch == 7


def test_refusals_of_the_server_reach_the_loop(running: tuple[ScriptedDatasets, str]):
    """What a server refuses is raised from the loader as what it is."""
    running[0].breaks.append(Break(1, StaleCursor("seed 1, not 0")))

    with pytest.raises(StaleCursor, match="seed 1, not 0"):
        list(load(remote(running[1])))


def test_ranks_are_consumers(running: tuple[ScriptedDatasets, str], monkeypatch: pytest.MonkeyPatch):
    """With torch.distributed each rank is one consumer of as many as there are ranks."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)

    keys = keys_of(load(remote(running[1])))

    assert keys == KEYS[4:8] + KEYS[12:16]
    assert (running[0].asked[0].consumer, running[0].asked[0].num_consumers) == (1, 2)


def test_ranks_that_do_not_know_themselves_are_refused(monkeypatch: pytest.MonkeyPatch):
    """Under torchrun, before torch.distributed is there, no rank passes for consumer 0 of 1."""
    monkeypatch.setenv("WORLD_SIZE", "4")

    with pytest.raises(InputError, match=r"WORLD_SIZE is 4, but torch\.distributed is not initialised"):
        remote("127.0.0.1:1")
    assert isinstance(remote("127.0.0.1:1", consumer=3, num_consumers=4), RemoteDataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"consumer": 1}, "got consumer alone"),
        ({"num_consumers": 2}, "got num_consumers alone"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"cursor": {}}, "a cursor has the fields"),
        ({"mixer": ""}, "which mixer shall mix"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: dict[str, Any], message: str):
    """A wrong option is refused where the dataset is made, not in a worker."""
    with pytest.raises(InputError, match=message):
        RemoteDataset("127.0.0.1:1", "made", **(OPTIONS | options))


@pytest.mark.slow
def test_one_worker_reads_and_keeps_the_epochs(running: tuple[ScriptedDatasets, str]):
    """In one worker process that lives on, batches come whole and in order, and the epoch is the one set here."""
    servicer, target = running
    dataset = remote(target)
    loader = load(dataset, num_workers=1, persistent_workers=True, multiprocessing_context="spawn")

    first = list(loader)
    dataset.set_epoch(1)
    second = list(loader)

    assert keys_of(first) == keys_of(second) == KEYS
    assert first[1].images.shape == (4, 3, SIDE, SIDE)
    assert first[1].labels_a.tolist() == [4, 5, 6, 7]
    assert [asked.epoch for asked in servicer.asked] == [0, 1]
    with pytest.raises(InputError, match="alone knows its place"):
        dataset.state_dict()
    revived = remote(target, cursor=first[2].cursor)
    assert keys_of(revived) == KEYS[12:]


@pytest.mark.slow
def test_several_workers_are_refused(running: tuple[ScriptedDatasets, str]):
    """More than one worker is refused in a sentence that says what to do."""
    loader = load(remote(running[1]), num_workers=2, multiprocessing_context=multiprocessing.get_context("spawn"))

    with pytest.raises(InputError, match="num_workers is 2, and a RemoteDataset is one consumer"):
        next(iter(loader))
