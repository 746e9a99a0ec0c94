"""Epoch after epoch of one rank: its steps, the checkpoints between them, the evaluation behind them."""

import logging
import time
from collections.abc import Iterable

from torch import nn

from samix.mixing.plan import derive_seed
from services.shards.dataset import Batch
from trainer.evaluate import Evaluation, evaluate
from trainer.loop import Stepping, train_epoch
from trainer.methods.method import Head
from trainer.progress import follow
from trainer.sample_trace import trace_path, traced
from trainer.state import Place, Run, save
from trainer.stopping import Stopped, StopVote
from trainer.summary import FALLBACKS

log = logging.getLogger(__name__)

_FOR_CURVES = {"lr", "cross_entropy", "calibration_error"}
"""What log.jsonl holds of an epoch and its line in the log does not, which people read."""


def train_epochs(run: Run, network: nn.Module, place: Place, vote: StopVote) -> Evaluation:
    """Train from a place on to the end of the run; every rank calls it. Returns the last evaluation.

    Args:
        run: of this rank, its state that of `place`.
        network: the run's method, or what DDP made of it.
        place: before the end of the run.
        vote: asked after every step.

    Raises:
        Stopped: once all ranks agreed to; the state is saved.
    """
    while True:
        fallen_back = run.metrics.value(FALLBACKS)
        _do_steps(run, network, place, vote)
        evaluation = _evaluate(run, place, run.metrics.value(FALLBACKS) - fallen_back)
        place = Place(epoch=place.epoch + 1)
        if place.epoch == run.config.epochs:
            return evaluation


def evaluate_head(run: Run, head: Head) -> Evaluation:
    """Evaluate one head of what is trained; every rank calls it."""
    return evaluate(run.method, run.val, run.world, head, num_classes=run.config.data.num_classes)


def _do_steps(run: Run, network: nn.Module, place: Place, vote: StopVote) -> None:
    """Do what is left of an epoch; behind its last step there always is a checkpoint."""
    config, total = run.config, run.train.steps_per_epoch
    run.train.set_epoch(place.epoch, first_step=place.step)
    first_batch = place.step * config.accumulate
    batches = run.metrics.loaded(_noted(run, place.epoch, first_batch))
    steps = train_epoch(
        network,
        run.method,
        run.batches.epoch(place.epoch, batches, first_batch=first_batch),
        run.update,
        run.metrics,
        stepping=Stepping(precision=config.precision, micro_batches=config.accumulate),
        seeds=lambda step: derive_seed(config.seed, "dropout", place.epoch, step, run.world.rank),
        first_step=place.step,
    )
    followed = follow(
        steps,
        epoch=place.epoch,
        total=total,
        every=config.log_every,
        run_log=run.run_log,
        world=run.world,
        tally=place.tally,
        metrics=run.metrics,
        first_step=place.step,
        remaining_epochs=config.epochs - place.epoch - 1,
    )
    saved_at = time.monotonic()
    for done, _ in enumerate(followed, start=place.step + 1):
        if run.averaged is not None:
            run.averaged.update(run.method.classifier, step=place.epoch * total + done)
        signal = vote.ask()
        is_due = done == total or signal or run.config.checkpoint.is_due(done, time.monotonic() - saved_at)
        if is_due and run.world.is_main:
            save(run, Place(epoch=place.epoch, step=done, tally=place.tally))
            saved_at = time.monotonic()
        if signal:
            run.world.gather(None)  # rank 0 has saved; torchrun ends all ranks once one has left
            raise Stopped(signal, place.epoch, done)


def _noted(run: Run, epoch: int, first_batch: int) -> Iterable[Batch]:
    if not run.config.trace_samples:
        return run.train
    path = trace_path(run.config.out, run.world.rank)
    return traced(run.train, path, epoch=epoch, first_batch=first_batch, micro_batches=run.config.accumulate)


def _evaluate(run: Run, place: Place, fallbacks: float) -> Evaluation:
    """Evaluate behind the last step of an epoch, and say what came of it."""
    # Each rank's last step left buffers of its own; evaluated is what rank 0 saved.
    run.world.share_buffers(run.method)
    if run.averaged is not None:
        run.world.share_buffers(run.averaged.module)
    evaluation = evaluate_head(run, run.evaluated)
    averages, found = place.tally.whole.averages(), evaluation.row()
    row = averages | found
    row |= {
        "wait_share": max(run.world.gather(averages["wait_share"])),  # the slowest rank holds up all
        "fallbacks": int(sum(run.world.gather(fallbacks))),
    }
    is_best = found["top1"] > max((row["top1"] for row in run.run_log.of("epoch")), default=-1.0)
    run.run_log.write("epoch", epoch=place.epoch + 1, **row)
    run.metrics.epoch.set(place.epoch + 1)
    run.metrics.accuracy.set(evaluation.top1)
    if run.world.is_main:
        told = {name: value for name, value in row.items() if name not in _FOR_CURVES}
        log.info("epoch", extra={"epoch": place.epoch + 1, "of": run.config.epochs, **told})
        figures = place.tally.whole.figure_averages()
        run.method.epoch_done(figures, progress=(place.epoch + 1) / run.config.epochs)
        if is_best:
            run.checkpoints.mark_newest_best()
    return evaluation
