"""Accuracy counts every sample once, whatever the batches, classes and ranks."""

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from training import ALONE, join_as, spawn_two_ranks

from services.shards.dataset import Batch
from trainer.evaluate import Accuracy, evaluate


class Table(nn.Module):
    """Ranks classes by a table: the first red byte of an image says which row of scores it gets."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, images: Tensor) -> Tensor:
        return self.scores[images[:, 0, 0, 0].mul(255).round().long()]


def batch(rows: list[int], labels: list[int]) -> Batch:
    images = torch.tensor(rows, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return Batch(images=images, labels=torch.tensor(labels), positions=torch.arange(len(rows)))


def test_counts_over_uneven_batches():
    """Top-1 and top-5 are shares of all samples, not averages of batches."""
    scores = torch.arange(10.0).expand(1, 10)  # ranks 9, 8, 7, 6, 5 first
    batches = [batch([0, 0, 0], [9, 5, 4]), batch([0], [9])]

    accuracy = evaluate(Table(scores), batches, ALONE)

    assert accuracy == Accuracy(top1=2 / 4, top5=3 / 4, samples=4)


def test_fewer_than_five_classes():
    """With fewer than five classes every sample is among the first five."""
    accuracy = evaluate(Table(torch.arange(3.0).expand(1, 3)), [batch([0, 0], [2, 0])], ALONE)

    assert accuracy == Accuracy(top1=0.5, top5=1.0, samples=2)


def test_a_head_of_its_own():
    """What classifies may be another function of the same model; it too sees images in [0, 1] and no dropout."""
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.99), nn.Linear(12, 10))
    seen = []

    def head(images: Tensor) -> Tensor:
        seen.append((model.training, images.dtype, images.max().item()))
        return torch.arange(10.0).expand(2, 10)  # ranks 9, 8, 7, 6, 5 first

    accuracy = evaluate(model, [batch([255, 0], [9, 5])], ALONE, head)

    assert accuracy == Accuracy(top1=0.5, top5=1.0, samples=2)
    assert seen == [(False, torch.float32, 1.0)]


def test_leaves_the_model_training():
    """Evaluation uses the statistics of batch norm without touching them, and training goes on afterwards."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    evaluate(model, [batch([7, 9], [0, 1])], ALONE)

    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def evaluate_as_rank(rank: int, port: int, results: mp.SimpleQueue) -> None:
    """Rank 1 has one batch less and, as after a training step, other buffers than rank 0."""
    with join_as(rank, port) as world:
        model = nn.BatchNorm1d(1)
        model.running_mean = torch.full((1,), float(rank))
        world.share_buffers(model)
        shares = world.gather(model.running_mean.item())
        table = Table(torch.eye(10))
        batches = [batch([1, 2, 3], [1, 2, 4]), batch([4], [4])] if rank == 0 else [batch([5], [5])]
        results.put((rank, shares, evaluate(table, batches, world)))


@pytest.mark.slow
def test_ranks_with_unequal_samples():
    """Ranks add up their counts although one has more batches, and agree on buffers and result."""
    results = mp.get_context("spawn").SimpleQueue()

    spawn_two_ranks(evaluate_as_rank, results)

    expected = Accuracy(top1=4 / 5, top5=1.0, samples=5)
    found = {rank: (shares, accuracy) for rank, shares, accuracy in (results.get(), results.get())}
    assert found[0][1].top1 == found[1][1].top1 == expected.top1
    assert found[0][1].samples == 5
    assert found[0][0] == found[1][0] == [0.0, 0.0]
