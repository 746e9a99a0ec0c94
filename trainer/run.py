"""One training run of one rank, from the config to the summary."""

import logging
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import torch
from prometheus_client import generate_latest
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.sgd import SGD

from samix.errors import ConfigError
from services.addresses import format_address
from services.config import write_resolved
from services.metrics import serve_metrics
from services.shards.loader import EvalLoader, TrainLoader, eval_loader, train_loader
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.config import TrainConfig
from trainer.evaluate import Accuracy, evaluate
from trainer.loop import classify_mixed, train_epoch
from trainer.metrics import TrainerMetrics
from trainer.mixing import open_mixing
from trainer.model import build_classifier
from trainer.optimise import build_schedule, build_sgd
from trainer.prefetch import BatchMixing
from trainer.report import Row, RunLog, draw_curves, follow, write_summary
from trainer.world import World, join_world

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"

_FALLBACKS = "mixer_client_fallback_total"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What one rank's run is made of."""

    config: TrainConfig
    world: World
    metrics: TrainerMetrics
    train: TrainLoader
    val: EvalLoader
    model: nn.Module
    """The bare classifier; what is trained may be wrapped around it."""
    optimiser: SGD
    schedule: LambdaLR
    mixing: BatchMixing
    run_log: RunLog


def run(recipe: str, config: TrainConfig) -> None:
    """Train, evaluate and summarise; every rank calls it.

    Raises:
        InputError: for whatever is wrong with config, data or mixer, before the first step wherever possible.
        BudgetSpent: if the mixer failed for too long.
    """
    with join_world(config.device) as world:
        _prepare_out(config.out, world)
        metrics = TrainerMetrics(world.rank)
        port = config.metrics.port and config.metrics.port + world.local_rank
        with closing(serve_metrics(metrics.registry, config.metrics.host, port)) as page:
            url = f"http://{format_address(config.metrics.host, page.port)}/metrics"
            log.info("metrics_page", extra={"rank": world.rank, "url": url})
            with _open(config, world, metrics) as parts:
                _train(recipe, parts)
            _linger(config.metrics.linger_s, world)


def _prepare_out(out: Path, world: World) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
        if world.is_main:
            (out / "summary.json").unlink(missing_ok=True)  # whoever waits for it waits for this run's
    except OSError as error:
        raise ConfigError(f"cannot write to the folder {out} ({error.strerror}); choose another --out") from error


@contextmanager
def _open(config: TrainConfig, world: World, metrics: TrainerMetrics) -> Iterator[_Run]:
    pin = world.device.type == "cuda"
    with (
        train_loader(config.data, seed=config.seed, rank=world.rank, world_size=world.size, pin_memory=pin) as train,
        eval_loader(config.data, rank=world.rank, world_size=world.size, pin_memory=pin) as val,
        open_mixing(
            config.mixing, seed=config.seed, image_size=config.data.image_size, world=world, metrics=metrics
        ) as mixing,
    ):
        model = build_classifier(config.model, config.data.num_classes, seed=config.seed).to(world.device)
        optimiser = build_sgd(config.optimiser, model.parameters())
        yield _Run(
            config=config,
            world=world,
            metrics=metrics,
            train=train,
            val=val,
            model=model,
            optimiser=optimiser,
            schedule=build_schedule(config.optimiser, optimiser, config.epochs * train.steps_per_epoch),
            mixing=mixing,
            run_log=RunLog(config.out, is_writer=world.is_main),
        )


def _train(recipe: str, run: _Run) -> None:
    started = time.monotonic()
    if run.world.is_main:
        write_resolved(run.config, run.config.out / "config.json")
    first_epoch = _restore(run) if run.config.resume else 0
    network = _wrapped(run.model, run.world)
    accuracies = [_epoch(run, network, epoch) for epoch in range(first_epoch, run.config.epochs)]
    summary = _summary(recipe, run, accuracies, time.monotonic() - started)
    page = run.config.out / f"metrics-rank{run.world.rank}.txt"
    page.write_bytes(generate_latest(run.metrics.registry))
    if run.world.is_main:
        draw_curves(run.config.out / "curves.png", run.run_log, f"{recipe}, mixing: {run.config.mixing.policy}")
        write_summary(run.config.out / "summary.json", summary)
        log.info("done", extra={key: summary[key] for key in ("top1", "steps", "images", "fallbacks", "seconds")})


def _wrapped(model: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return model
    # Of 1x1 convolutions in channels_last, whose strides are ambiguous but whose bytes lie in the same order.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=[world.device] if world.device.type == "cuda" else None)


def _epoch(run: _Run, network: nn.Module, epoch: int) -> Accuracy:
    started = time.monotonic()
    waited_s, fallen_back = run.metrics.waited_s, run.metrics.value(_FALLBACKS)
    run.train.set_epoch(epoch)
    mixed = run.mixing.epoch(epoch, run.train)
    steps = train_epoch(network, mixed, classify_mixed, run.optimiser, run.schedule, run.metrics)
    shown = follow(
        steps,
        epoch=epoch,
        total=run.train.steps_per_epoch,
        every=run.config.log_every,
        run_log=run.run_log,
        world=run.world,
    )
    losses = [step.loss for step in shown]
    seconds = time.monotonic() - started
    wait_shares = run.world.gather((run.metrics.waited_s - waited_s) / seconds)
    fallbacks = torch.tensor(round(run.metrics.value(_FALLBACKS) - fallen_back))
    run.world.share_buffers(run.model)  # each rank's last step left its own; evaluated is what rank 0 saves
    accuracy = evaluate(run.model, run.val, run.world)
    row = {
        "epoch": epoch + 1,
        "loss": round(sum(losses) / len(losses), 4),
        "top1": round(accuracy.top1, 5),
        "top5": round(accuracy.top5, 5),
        "images_per_s": round(len(losses) * run.config.data.global_batch / seconds, 1),
        "wait_share": round(max(wait_shares), 4),  # the slowest rank holds up all
        "fallbacks": int(run.world.total(fallbacks)),
    }
    run.run_log.write("epoch", **row)
    run.metrics.epoch.set(epoch + 1)
    run.metrics.accuracy.set(accuracy.top1)
    if run.world.is_main:
        log.info("epoch", extra={**row, "of": run.config.epochs})
        _save(run, epoch)
    return accuracy


def _restore(run: _Run) -> int:
    """Take up the state of the last saved epoch; returns the number of epochs that are done."""
    path = run.config.out / CHECKPOINT
    state = load_checkpoint(path)
    done: int = state["epoch"]
    if state["seed"] != run.config.seed:
        raise ConfigError(f"{path} was trained with seed {state['seed']}, got --seed {run.config.seed}; use the same")
    if done >= run.config.epochs:
        raise ConfigError(f"{path} has {done} of --epochs {run.config.epochs} behind it; there is nothing to resume")
    try:
        run.model.load_state_dict(state["model"])
        run.optimiser.load_state_dict(state["optimiser"])
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} is of another model ({reason}); resume with the recipe and flags it had") from error
    run.schedule.load_state_dict(state["schedule"])
    run.run_log.reopen(last_epoch=done)
    log.info("resumed", extra={"rank": run.world.rank, "checkpoint": str(path), "epochs_done": done})
    return done


def _save(run: _Run, epoch: int) -> None:
    state = {
        "epoch": epoch + 1,
        "seed": run.config.seed,
        "model": run.model.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "schedule": run.schedule.state_dict(),
    }
    save_checkpoint(run.config.out / CHECKPOINT, state)


def _summary(recipe: str, run: _Run, accuracies: list[Accuracy], seconds: float) -> Row:
    """Add up what all ranks did; every rank must call it."""
    families = {
        "steps": "trainer_steps_total",
        "images": "trainer_images_total",
        "fallbacks": _FALLBACKS,
        "retries": "mixer_client_retries_total",
    }
    ranks = run.world.gather({name: int(run.metrics.value(family)) for name, family in families.items()})
    epochs = run.run_log.of("epoch")
    return {
        "recipe": recipe,
        "policy": run.config.mixing.policy,
        "world_size": run.world.size,
        "epochs": run.config.epochs,
        "top1": accuracies[-1].top1,
        "top5": accuracies[-1].top5,
        "best_top1": max(accuracy.top1 for accuracy in accuracies),
        "evaluated": accuracies[-1].samples,
        "first_loss": epochs[0]["loss"],
        "last_loss": epochs[-1]["loss"],
        "steps": ranks[0]["steps"],
        "images": sum(rank["images"] for rank in ranks),
        "fallbacks": sum(rank["fallbacks"] for rank in ranks),
        "retries": sum(rank["retries"] for rank in ranks),
        "ranks": ranks,
        "wait_share": sum(row["wait_share"] for row in epochs) / len(epochs),
        "seconds": round(seconds, 1),
        "images_per_s": round(sum(row["images_per_s"] for row in epochs) / len(epochs), 1),
    }


def _linger(seconds: float, world: World) -> None:
    if seconds > 0:
        if world.is_main:
            log.info("metrics_linger", extra={"seconds": seconds})
        with suppress(KeyboardInterrupt):  # the run is done, whoever does not want to wait need not
            threading.Event().wait(seconds)
