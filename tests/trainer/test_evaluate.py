"""An evaluation counts every sample once, whatever the batches, classes and ranks."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from training import ALONE, join_as, spawn_two_ranks

from services.shards.dataset import Batch
from trainer.evaluate import Evaluation, evaluate


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


def of_model(model: nn.Module, batches: list[Batch], *, num_classes: int = 10) -> Evaluation:
    return evaluate(model, batches, ALONE, model, num_classes=num_classes)


def test_counts_over_uneven_batches():
    """Top-1 and top-5 are shares of all samples, not averages of batches."""
    scores = torch.arange(10.0).expand(1, 10)  # ranks 9, 8, 7, 6, 5 first
    batches = [batch([0, 0, 0], [9, 5, 4]), batch([0], [9])]

    found = of_model(Table(scores), batches)

    assert (found.top1, found.top5, found.samples) == (2 / 4, 3 / 4, 4)


def test_fewer_than_five_classes():
    """With fewer than five classes every sample is among the first five."""
    found = of_model(Table(torch.arange(3.0).expand(1, 3)), [batch([0, 0], [2, 0])], num_classes=3)

    assert (found.top1, found.top5, found.samples) == (0.5, 1.0, 2)


def test_counts_by_class():
    """Each class has its own samples and hits; one that has no samples has no accuracy either."""
    batches = [batch([1, 1, 2], [1, 0, 2]), batch([1], [1])]

    found = of_model(Table(torch.eye(4)), batches, num_classes=4)

    assert found.class_samples == (1, 2, 1, 0)
    assert found.class_right == (0, 2, 1, 0)
    assert [found.class_top1(number) for number in range(4)] == [0.0, 1.0, 1.0, None]


@given(st.data())
def test_figures_are_those_of_the_whole_set(data: st.DataObject):
    """Cross-entropy and calibration error do not depend on how the samples are cut into batches."""
    count = data.draw(st.integers(1, 40))
    scores = torch.randn(count, 7, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))) * 4
    labels = data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))
    cuts = sorted(data.draw(st.sets(st.integers(1, count))) | {0, count})
    batches = [batch(list(range(a, b)), labels[a:b]) for a, b in pairwise(cuts)]

    found = of_model(Table(scores), batches, num_classes=7)

    assert found.cross_entropy == pytest.approx(F.cross_entropy(scores, torch.tensor(labels)).item(), rel=1e-5)
    assert found.calibration_error == pytest.approx(error_by_definition(scores, labels), abs=1e-6)


def error_by_definition(scores: Tensor, labels: list[int]) -> float:
    """Guo et al. 2017, equation by equation: samples into bins ((m-1)/15, m/15], then the weighted gaps."""
    members: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for row, label in zip(scores.double().softmax(1).tolist(), labels, strict=True):
        m = next(m for m in range(1, 16) if max(row) <= m / 15 or m == 15)
        members[m].append((max(row), row.index(max(row)) == label))
    gaps = [abs(fmean(right for _, right in bin_) - fmean(sure for sure, _ in bin_)) for bin_ in members.values()]
    return sum(len(bin_) * gap for bin_, gap in zip(members.values(), gaps, strict=True)) / len(labels)


def test_speed_by_the_clock():
    """Images per second count from the first batch asked for to the last one counted."""
    ticks = iter([10.0, 12.0])
    table = Table(torch.eye(10))

    found = evaluate(table, [batch([1, 2, 3], [1, 2, 3])], ALONE, table, num_classes=10, clock=lambda: next(ticks))

    assert (found.seconds, found.images_per_s) == (2.0, 1.5)


def test_row_for_the_log():
    """The log shows four figures."""
    found = of_model(Table(torch.eye(10)), [batch([1, 2, 3], [1, 2, 3])])

    assert found.row() == {"top1": 1.0, "top5": 1.0, "cross_entropy": 1.46115, "calibration_error": 0.76803}


def test_a_head_of_its_own():
    """What classifies may be another function of the same model; it too sees images in [0, 1] and no dropout."""
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.99), nn.Linear(12, 10))
    seen = []

    def head(images: Tensor) -> Tensor:
        seen.append((model.training, images.dtype, images.max().item()))
        return torch.arange(10.0).expand(2, 10)  # ranks 9, 8, 7, 6, 5 first

    found = evaluate(model, [batch([255, 0], [9, 5])], ALONE, head, num_classes=10)

    assert (found.top1, found.top5, found.samples) == (0.5, 1.0, 2)
    assert seen == [(False, torch.float32, 1.0)]


def test_leaves_the_model_training():
    """Evaluation uses the statistics of batch norm without touching them, and training goes on afterwards."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    of_model(model, [batch([7, 9], [0, 1])])

    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def evaluate_as_rank(rank: int, port: int, results: mp.SimpleQueue) -> None:
    """Rank 1 has no samples and, as after a training step, other buffers than rank 0."""
    with join_as(rank, port) as world:
        model = nn.BatchNorm1d(1)
        model.running_mean = torch.full((1,), float(rank))
        world.share_buffers(model)
        shares = world.gather(model.running_mean.item())
        table = Table(torch.eye(10))
        batches = [batch([1, 2, 3], [1, 2, 4]), batch([4], [4])] if rank == 0 else []
        results.put((rank, shares, evaluate(table, batches, world, table, num_classes=10)))


@pytest.mark.slow
def test_ranks_with_unequal_samples():
    """Ranks add up their counts although one has none, and agree on buffers and result."""
    results = mp.get_context("spawn").SimpleQueue()

    spawn_two_ranks(evaluate_as_rank, results)

    found = {rank: (shares, evaluation) for rank, shares, evaluation in (results.get(), results.get())}
    assert found[0][0] == found[1][0] == [0.0, 0.0]
    assert (found[0][1].top1, found[0][1].samples) == (3 / 4, 4)
    assert replace(found[0][1], seconds=0) == replace(found[1][1], seconds=0)
