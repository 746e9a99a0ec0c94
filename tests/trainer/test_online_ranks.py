"""Two ranks of online training are one run: averaged gradients, one set of statistics."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from co_training import OPENMIXUP, STEPS, co_training, optimisers, planned
from learning import snapshot
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from training import join_as, spawn_two_ranks

from trainer.loop import train_epoch
from trainer.methods.online import CoTraining
from trainer.metrics import TrainerMetrics


def train_as_rank(rank: int, port: int, folder: Path, settings: dict[str, Any]) -> None:
    """Train some steps under DDP, as one of two ranks, and write what is left after the first and the last."""
    torch.set_num_threads(1)
    with join_as(rank, port) as world:
        method = co_training(**settings)
        update, states = optimisers(method), []
        items = (planned(step, rank=rank, per_sample_lam=method.online.config.per_sample_lam) for step in range(STEPS))
        network, metrics = DistributedDataParallel(method), TrainerMetrics(rank)
        for _ in train_epoch(network, method, items, update, metrics, seeds=int):
            states.append(snapshot(method))
        world.share_buffers(method)
        torch.save({"states": states, "shared": snapshot(method)}, folder / f"rank{rank}.pt")


def averaged_steps(method: CoTraining) -> Iterator[dict[str, Tensor]]:
    """Train in this process on both ranks' batches: averaged gradients, buffers of rank 0."""
    update = optimisers(method)
    per_sample_lam = method.online.config.per_sample_lam
    for step in range(STEPS):
        items = [planned(step, rank=rank, per_sample_lam=per_sample_lam) for rank in range(2)]
        replicas = [copy.deepcopy(method) for _ in items]
        for replica, item in zip(replicas, items, strict=True):
            replica(item).total.backward()
        method.load_state_dict(replicas[0].state_dict())
        update.backward(with_averaged_gradients(method, replicas))
        update.step()
        method.updated(items[0])
        yield snapshot(method)


def with_averaged_gradients(method: nn.Module, replicas: list[CoTraining]) -> Tensor:
    """Make a loss whose gradient is the mean of the replicas' gradients."""
    terms = []
    for parameter, *others in zip(method.parameters(), *(replica.parameters() for replica in replicas), strict=True):
        grads = [other.grad for other in others if other.grad is not None]
        if grads:
            terms.append((parameter * torch.stack(grads).mean(dim=0)).sum())
    return torch.stack(terms).sum()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, OPENMIXUP], ids=["paper", "openmixup"])
def test_two_ranks_train_as_one(tmp_path: Path, settings: dict[str, Any]):
    """Steps of two ranks are steps on their averaged gradients, for classifier, block and copy alike."""
    spawn_two_ranks(train_as_rank, tmp_path, settings)

    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    method = co_training(**settings).train()
    learnt = dict(method.named_parameters()).keys()
    for expected, mine, theirs in zip(averaged_steps(method), first["states"], second["states"], strict=True):
        for name in expected:
            torch.testing.assert_close(mine[name], expected[name], atol=1e-5, rtol=1e-4)
        assert all(torch.equal(mine[name], theirs[name]) for name in learnt)
    assert all(torch.equal(value, second["shared"][name]) for name, value in first["shared"].items())
    assert all(torch.equal(value, first["states"][-1][name]) for name, value in first["shared"].items())
    assert any(not torch.equal(value, second["states"][-1][name]) for name, value in first["shared"].items())
