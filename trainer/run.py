"""One training run of one rank, from the config to the summary."""

import logging
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

import torch
from prometheus_client import generate_latest
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from samix.errors import ConfigError
from samix.mixing.plan import derive_seed
from services.addresses import format_address
from services.config import write_resolved
from services.metrics import serve_metrics
from services.shards.loader import eval_loader, train_loader
from trainer.config import TrainConfig
from trainer.evaluate import Accuracy, evaluate
from trainer.export import Origin, first_pictures
from trainer.loop import train_epoch
from trainer.methods.build import build_method, open_batches
from trainer.metrics import TrainerMetrics
from trainer.report import RunLog, average_figures, draw_curves, follow, write_summary
from trainer.state import Run, restore, save
from trainer.summary import FALLBACKS, summarise
from trainer.world import World, join_world

log = logging.getLogger(__name__)


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
def _open(config: TrainConfig, world: World, metrics: TrainerMetrics) -> Iterator[Run]:
    pin = world.device.type == "cuda"
    with (
        train_loader(config.data, seed=config.seed, rank=world.rank, world_size=world.size, pin_memory=pin) as train,
        eval_loader(config.data, rank=world.rank, world_size=world.size, pin_memory=pin) as val,
    ):
        total_steps = config.epochs * train.steps_per_epoch
        method, update = build_method(config, total_steps=total_steps, device=world.device)
        with open_batches(config, method, world, metrics, steps_per_epoch=train.steps_per_epoch) as batches:
            yield Run(
                config=config,
                world=world,
                metrics=metrics,
                train=train,
                val=val,
                method=method,
                update=update,
                batches=batches,
                run_log=RunLog(config.out, is_writer=world.is_main),
            )


def _train(recipe: str, run: Run) -> None:
    if run.world.is_main:
        write_resolved(run.config, run.config.out / "config.json")
    first_epoch = restore(run) if run.config.resume else 0
    network = _wrapped(run.method, run.world)
    accuracy = None
    for epoch in range(first_epoch, run.config.epochs):
        accuracy = _epoch(run, network, epoch)
    # A run that ended between its last checkpoint and its summary has no epoch left when it is resumed.
    accuracy = accuracy or evaluate(run.method, run.val, run.world, run.method.classifier)
    heads = {
        name: accuracy if head is run.method.classifier else evaluate(run.method, run.val, run.world, head)
        for name, head in run.method.further_heads().items()
    }
    summary = summarise(recipe, run, accuracy, heads)
    page = run.config.out / f"metrics-rank{run.world.rank}.txt"
    page.write_bytes(generate_latest(run.metrics.registry))
    if run.world.is_main:
        summary |= run.method.export(run.config.out, _origin(recipe, run.config), first_pictures(run.val))
        draw_curves(run.config.out / "curves.png", run.run_log, f"{recipe}, mixing: {run.config.mixing.policy}")
        write_summary(run.config.out / "summary.json", summary)
        log.info("done", extra={key: summary[key] for key in ("top1", "steps", "images", "fallbacks", "seconds")})


def _wrapped(method: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return method
    # Of 1x1 convolutions in channels_last, whose strides are ambiguous but whose bytes lie in the same order.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(method, device_ids=[world.device] if world.device.type == "cuda" else None)


def _epoch(run: Run, network: nn.Module, epoch: int) -> Accuracy:
    started = time.monotonic()
    waited_s, fallen_back = run.metrics.waited_s, run.metrics.value(FALLBACKS)
    # Dropout alone draws from torch's global generator: from here each epoch draws the same, also after a resume.
    torch.manual_seed(derive_seed(run.config.seed, "dropout", epoch, run.world.rank))
    run.train.set_epoch(epoch)
    steps = train_epoch(
        network,
        run.method,
        run.batches.epoch(epoch, run.train),
        run.update,
        run.metrics,
        precision=run.config.precision,
    )
    shown = list(
        follow(
            steps,
            epoch=epoch,
            total=run.train.steps_per_epoch,
            every=run.config.log_every,
            run_log=run.run_log,
            world=run.world,
        )
    )
    seconds = time.monotonic() - started
    wait_shares = run.world.gather((run.metrics.waited_s - waited_s) / seconds)
    fallbacks = torch.tensor(round(run.metrics.value(FALLBACKS) - fallen_back))
    run.world.share_buffers(run.method)  # each rank's last step left its own; evaluated is what rank 0 saves
    accuracy = evaluate(run.method, run.val, run.world, run.method.classifier)
    figures = average_figures(shown)
    row = {
        "epoch": epoch + 1,
        "loss": round(sum(step.loss for step in shown) / len(shown), 4),
        "top1": round(accuracy.top1, 5),
        "top5": round(accuracy.top5, 5),
        "images_per_s": round(len(shown) * run.config.data.global_batch / seconds, 1),
        "wait_share": round(max(wait_shares), 4),  # the slowest rank holds up all
        "fallbacks": int(run.world.total(fallbacks)),
        **figures,
    }
    run.run_log.write("epoch", **row)
    run.metrics.epoch.set(epoch + 1)
    run.metrics.accuracy.set(accuracy.top1)
    if run.world.is_main:
        log.info("epoch", extra={**row, "of": run.config.epochs})
        run.method.epoch_done(figures, progress=(epoch + 1) / run.config.epochs)
        save(run, epoch)
    return accuracy


def _origin(recipe: str, config: TrainConfig) -> Origin:
    return Origin(recipe=recipe, data=config.data.train, epochs=config.epochs, seed=config.seed)


def _linger(seconds: float, world: World) -> None:
    if seconds > 0:
        if world.is_main:
            log.info("metrics_linger", extra={"seconds": seconds})
        with suppress(KeyboardInterrupt):  # the run is done, whoever does not want to wait need not
            threading.Event().wait(seconds)
