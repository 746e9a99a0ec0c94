"""What one rank's run is made of, and how its state goes to a checkpoint and comes back."""

import logging
from dataclasses import dataclass
from typing import Any

from samix.errors import ConfigError
from services.shards.loader import EvalLoader, TrainLoader
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.config import TrainConfig
from trainer.methods.method import Method
from trainer.metrics import TrainerMetrics
from trainer.optimise import Update
from trainer.prefetch import BatchMixing
from trainer.report import RunLog
from trainer.world import World

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The parts of one rank's run."""

    config: TrainConfig
    world: World
    metrics: TrainerMetrics
    train: TrainLoader
    val: EvalLoader
    method: Method
    """What is trained; a wrapper for DDP may stand around it."""
    update: Update
    batches: BatchMixing[Any]
    """Prepares what the method takes."""
    run_log: RunLog


def save(run: Run, epoch: int) -> None:
    """Write the checkpoint that `restore` takes up after `epoch`, counted from 0."""
    state = {
        "epoch": epoch + 1,
        "seed": run.config.seed,
        "model": run.method.classifier.state_dict(),
        "method": run.method.further_state(),
        "update": run.update.state_dict(),
    }
    save_checkpoint(run.config.out / CHECKPOINT, state)


def restore(run: Run) -> int:
    """Take up the state of the last saved epoch; returns the number of epochs that are done, which may be all.

    Raises:
        ConfigError: if there is no checkpoint, or it is not of this run.
    """
    path = run.config.out / CHECKPOINT
    state = load_checkpoint(path)
    done: int = state["epoch"]
    if state["seed"] != run.config.seed:
        raise ConfigError(f"{path} was trained with seed {state['seed']}, got --seed {run.config.seed}; use the same")
    if done > run.config.epochs:
        raise ConfigError(f"{path} has {done} epochs behind it, more than --epochs {run.config.epochs}; ask for more")
    try:
        run.method.classifier.load_state_dict(state["model"])
        run.method.load_further_state(state["method"])
        run.update.load_state_dict(state["update"])
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} is of another model ({reason}); resume with the recipe and flags it had") from error
    run.run_log.reopen(last_epoch=done)
    log.info("resumed", extra={"rank": run.world.rank, "checkpoint": str(path), "epochs_done": done})
    return done
