"""Where a rank trains, and how one rank alone behaves."""

import pytest
import torch
from torch import nn
from training import ALONE

from samix.errors import ConfigError
from trainer.world import choose_device, join_world


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Set the number of GPUs that torch reports."""

    def report(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)

    return report


def test_auto_without_a_gpu(gpus):
    """`auto` trains on the CPU where there is no GPU."""
    gpus(0)

    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("kind", ["auto", "cuda"])
def test_each_rank_takes_its_gpu(gpus, kind):
    """Each rank of a machine takes the GPU of its own number."""
    gpus(2)

    assert choose_device(kind, local_rank=1) == torch.device("cuda", 1)


def test_cpu_where_there_are_gpus(gpus):
    """`cpu` is the CPU also on a machine with GPUs."""
    gpus(2)

    assert choose_device("cpu") == torch.device("cpu")


def test_refuses_cuda_without_a_gpu(gpus):
    """CUDA that is asked for and not there is refused with the cure."""
    gpus(0)

    with pytest.raises(ConfigError, match="torch finds no GPU; use --device auto"):
        choose_device("cuda")


@pytest.mark.parametrize("kind", ["auto", "cuda"])
def test_refuses_more_ranks_than_gpus(gpus, kind):
    """A rank without a GPU of its own is refused with the number there is."""
    gpus(2)

    with pytest.raises(ConfigError, match="local rank 2 finds 2 GPUs; start at most 2 ranks per machine"):
        choose_device(kind, local_rank=2)


def test_one_process_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch):
    """Without torchrun a process trains alone, joins no group, and its sums are its own."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    with join_world("cpu") as world:
        total, gathered = world.total(torch.tensor([2, 3])), world.gather("mine")
        world.share_buffers(nn.BatchNorm1d(1))

    assert world == ALONE
    assert world.is_main
    assert total.tolist() == [2, 3]
    assert gathered == ["mine"]
