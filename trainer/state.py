"""What one rank's run is made of, and how its state goes to a checkpoint and comes back."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samix.errors import ConfigError
from samix.mixing.update import Update
from services.config import differences, resolved
from services.shards.loader import EvalLoader, TrainLoader
from trainer.checkpoint import CheckpointFolder, load_checkpoint
from trainer.config import TrainConfig
from trainer.methods.method import Method
from trainer.metrics import TrainerMetrics
from trainer.prefetch import BatchMixing
from trainer.report import RunLog
from trainer.sample_trace import cut_traces
from trainer.tally import EpochTally
from trainer.world import World

log = logging.getLogger(__name__)

_OF_A_START = {"resume", "overwrite"}
"""Settings that say how a run starts, not what it does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a run stands."""

    epoch: int = 0
    """Epochs that are done, evaluation included."""
    step: int = 0
    """Steps done in the next one; all of them where only its evaluation is missing."""
    tally: EpochTally = field(default_factory=EpochTally)
    """Of those steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The parts of one rank's run."""

    recipe: str
    config: TrainConfig
    world: World
    metrics: TrainerMetrics
    train: TrainLoader
    val: EvalLoader
    method: Method
    """What is trained; a wrapper for DDP may stand around it."""
    averaged: Any
    """timm's moving average of the classifier, or None."""
    update: Update
    batches: BatchMixing[Any]
    """Prepares what the method takes."""
    run_log: RunLog
    checkpoints: CheckpointFolder

    @property
    def evaluated(self) -> Any:
        """The classifier that is evaluated: the averaged one where there is one."""
        return self.method.classifier if self.averaged is None else self.averaged.module


def save(run: Run, place: Place) -> Path:
    """Write the checkpoint that `restore` takes up again; rank 0 alone calls it.

    Raises:
        ConfigError: if weights are no numbers any more, as after a step in which another rank's loss was none: all that
            went on from them would fail.
        OSError: if it cannot be written.
    """
    started = time.monotonic()
    model = run.method.classifier.state_dict()
    for name, weights in model.items():
        if not weights.isfinite().all():
            raise ConfigError(
                f"{name} is no longer finite, so nothing was saved; lower --optimiser.lr, or resume earlier"
            )
    state = {
        "epoch": place.epoch,
        "step": place.step,
        "tally": place.tally.state_dict(),
        "recipe": run.recipe,
        "config": resolved(run.config),
        "order": run.train.fingerprint,
        "model": model,
        "averaged": None if run.averaged is None else run.averaged.module.state_dict(),
        "method": run.method.further_state(),
        "update": run.update.state_dict(),
    }
    path = run.checkpoints.save(state, epoch=place.epoch, step=place.step)
    run.metrics.checkpoint_saved(time.monotonic() - started)
    return path


def restore(run: Run, path: Path) -> Place:
    """Take up a saved state; every rank calls it.

    Raises:
        ConfigError: if the checkpoint cannot be read, or is not of this run.
    """
    state = load_checkpoint(path)
    _check_belongs(state, run, path)
    try:
        run.method.classifier.load_state_dict(state["model"])
        if run.averaged is not None:
            run.averaged.module.load_state_dict(state["averaged"])
        run.method.load_further_state(state["method"])
        run.update.load_state_dict(state["update"])
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{path} is of another model ({reason}); resume with the recipe it had, {state['recipe']}, and its flags"
        ) from error
    place = Place(epoch=state["epoch"], step=state["step"])
    place.tally.load_state_dict(state["tally"])
    run.run_log.reopen(place.epoch, place.step)
    if run.world.is_main:
        cut_traces(run.config.out, epoch=place.epoch, step=place.step)
        log.info("resumed", extra={"checkpoint": str(path), "epochs_done": place.epoch, "steps_done": place.step})
        _tell_changes(state["config"], run.config)
    return place


def _tell_changes(before: dict[str, Any], config: TrainConfig) -> None:
    """Say which settings are others than those of the checkpoint; they may be meant, such as another server."""
    changed = differences(before, resolved(config))
    told = [f"{name} {was} -> {now}" for name, (was, now) in changed.items() if name not in _OF_A_START]
    if told:
        log.warning("resumed_with_other_settings", extra={"changed": ", ".join(told)})


def _check_belongs(state: dict[str, Any], run: Run, path: Path) -> None:
    seed = state["config"]["seed"]
    if seed != run.config.seed:
        raise ConfigError(f"{path} was trained with seed {seed}, got --seed {run.config.seed}; use the same")
    if state["order"] != run.train.fingerprint:
        raise ConfigError(
            f"{path} was trained in another order of samples ({state['order']}, now {run.train.fingerprint}); resume "
            "with the shards, --data.global-batch, --data.lanes and --data.window it had"
        )
    if state["epoch"] >= run.config.epochs:
        stands, last = state["epoch"] + 1, run.config.epochs
        raise ConfigError(f"{path} stands in epoch {stands}, beyond the last of --epochs {last}; ask for more")
    if (state["averaged"] is None) != (run.averaged is None):
        had = "without" if state["averaged"] is None else "with"
        raise ConfigError(f"{path} was trained {had} an average of the weights; resume with the --ema-decay it had")
