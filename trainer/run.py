"""One training run of one rank, from the config to the summary."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import torch.distributed as dist
from prometheus_client import generate_latest
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from samix.errors import ConfigError
from samix.mixing.optimise import RunLength
from services.addresses import format_address
from services.cli import ProgramFailed
from services.config import write_resolved
from services.files import naming
from services.metrics import serve_metrics
from services.shards.loader import eval_loader, train_loader
from services.signals import StopRequest, stop_on_signals
from trainer import rendezvous
from trainer.averaging import averaged_copy
from trainer.checkpoint import CheckpointFolder
from trainer.config import TrainConfig
from trainer.discovery import announce_pages
from trainer.epochs import evaluate_head, train_epochs
from trainer.eval_program import evaluate_checkpoint
from trainer.evaluate import Evaluation
from trainer.export import Origin, first_pictures
from trainer.methods.build import build_method, open_batches
from trainer.methods.method import Method
from trainer.metrics import TrainerMetrics
from trainer.pictures.curves import draw_curves
from trainer.report import RunLog, write_summary
from trainer.sample_trace import cut_traces
from trainer.state import Place, Run, restore
from trainer.stopping import StopVote
from trainer.summary import summarise
from trainer.tensorboard import tensorboard_sinks
from trainer.world import World, join_world

log = logging.getLogger(__name__)

_REPEATED_SIGNAL_S = 2.0


class RankLost(ProgramFailed):
    """Another rank ended, and this one cannot go on without it."""


def run(recipe: str, config: TrainConfig) -> None:
    """Train, evaluate and summarise; every rank calls it.

    Raises:
        InputError: for whatever is wrong with config, data or mixer, before the first step wherever possible.
        BudgetSpent: if the mixer failed for too long.
        RankLost: if another rank ended.
        Stopped: after a signal.
    """
    with ExitStack() as signals, join_world(config.device) as world, _sharing_fate(world):
        _prepare_out(config.out)
        if config.eval is not None:
            evaluate_checkpoint(recipe, config, config.eval, world)
            return
        checkpoint = _checkpoint_to_resume(config, world)
        if world.is_main:
            (config.out / "summary.json").unlink(missing_ok=True)  # whoever waits for it waits for this run's
        metrics = TrainerMetrics(world.rank)
        port = config.metrics.port and config.metrics.port + world.local_rank
        with closing(serve_metrics(metrics.registry, config.metrics.host, port)) as page:
            url = f"http://{format_address(config.metrics.host, page.port)}/metrics"
            log.info("metrics_page", extra={"rank": world.rank, "url": url})
            with announce_pages(config.out, config.out.resolve().name, config.metrics, page.port, world):
                with _open(recipe, config, world, metrics) as parts:
                    request = _train(parts, checkpoint, signals)
                _linger(config.metrics.linger_s, world, request)


@contextmanager
def _sharing_fate(world: World) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Gloo raises plain RuntimeErrors, NCCL those of torch.distributed.
        if world.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).splitlines()[0].rpartition("] ")[2] or type(error).__name__
        raise RankLost(f"rank {world.rank} lost another rank ({reason}); its own log says why it ended") from error


def _prepare_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to the folder {out} ({error.strerror}); choose another --out") from error


def _checkpoint_to_resume(config: TrainConfig, world: World) -> Path | None:
    """Find the checkpoint to go on from: the one rank 0 sees, lest another machine's view of the disk be older.

    Raises:
        ConfigError: if there is none and there must be, or there is one that nobody spoke of.
    """
    seen = (_folder(config).newest(), rendezvous.has_begun()) if world.is_main else (None, False)
    path, has_begun = world.gather(seen)[0]
    if has_begun:
        return path
    if path is None and config.resume == "yes":
        raise ConfigError(f"{config.out} holds no checkpoint to go on from; check --out, or leave out --resume yes")
    if path is not None and config.resume == "no" and not config.overwrite:
        raise ConfigError(
            f"{config.out} holds checkpoints of an earlier run; go on with it by --resume yes, start anew by "
            "--overwrite, or choose another --out"
        )
    return None if config.overwrite else path


def _folder(config: TrainConfig) -> CheckpointFolder:
    return CheckpointFolder(config.out / "checkpoints", config.checkpoint.keep)


@contextmanager
def _open(recipe: str, config: TrainConfig, world: World, metrics: TrainerMetrics) -> Iterator[Run]:
    pin = world.device.type == "cuda"
    with ExitStack() as parts:
        train = parts.enter_context(
            train_loader(
                config.data,
                seed=config.seed,
                rank=world.rank,
                world_size=world.size,
                pin_memory=pin,
                micro_batches=config.accumulate,
            )
        )
        val = parts.enter_context(eval_loader(config.data, rank=world.rank, world_size=world.size, pin_memory=pin))
        length = RunLength(steps_per_epoch=train.steps_per_epoch, epochs=config.epochs)
        method, update = build_method(config, length, world.device)
        batches = parts.enter_context(
            open_batches(config, method, world, metrics, steps_per_epoch=train.steps_per_epoch)
        )
        sinks = tensorboard_sinks(config.tensorboard, config.out, world, steps_per_epoch=train.steps_per_epoch)
        run_log = parts.enter_context(closing(RunLog(config.out, is_writer=world.is_main, sinks=sinks)))
        yield Run(
            recipe=recipe,
            config=config,
            world=world,
            metrics=metrics,
            train=train,
            val=val,
            method=method,
            averaged=averaged_copy(method.classifier, config.ema_decay) if config.ema_decay else None,
            update=update,
            batches=batches,
            run_log=run_log,
            checkpoints=_folder(config),
        )


def _train(run: Run, checkpoint: Path | None, signals: ExitStack) -> StopRequest:
    if run.world.is_main:
        write_resolved(run.config, run.config.out / "config.json")
    run.metrics.epochs.set(run.config.epochs)
    place = _start_anew(run) if checkpoint is None else restore(run, checkpoint)
    if run.world.is_main:
        rendezvous.note_begun()
    network = _prepared(run.method, run.config, run.world)
    # Caught to the end. torchrun sends SIGTERM to ranks that lost another one, and they would die of it before they
    # said why, while workers of their loaders end; and of a run that is done only the lingering is left to be stopped.
    request = signals.enter_context(stop_on_signals(repeats_s=_REPEATED_SIGNAL_S))
    evaluation = train_epochs(run, network, place, StopVote(request, run.world))
    _finish(run, evaluation)
    return request


def _start_anew(run: Run) -> Place:
    if run.world.is_main:
        run.checkpoints.clear()
        run.run_log.clear()
        cut_traces(run.config.out, epoch=0, step=0)
    return Place()


def _prepared(method: Method, config: TrainConfig, world: World) -> nn.Module:
    if config.sync_bn and world.size > 1:
        if world.device.type != "cuda":
            raise ConfigError("--sync-bn needs GPUs: torch synchronises batch norm on CUDA only; use --no-sync-bn")
        nn.SyncBatchNorm.convert_sync_batchnorm(method.classifier)
    if config.compile:
        method.classifier.backbone.compile()
    if world.size == 1:
        return method
    # Of 1x1 convolutions in channels_last, whose strides are ambiguous but whose bytes lie in the same order.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(method, device_ids=[world.device] if world.device.type == "cuda" else None)


def _finish(run: Run, evaluation: Evaluation) -> None:
    heads = {
        name: evaluation if head is run.evaluated else evaluate_head(run, head)
        for name, head in run.method.further_heads().items()
    }
    summary = summarise(run, evaluation, heads)
    page = run.config.out / f"metrics-rank{run.world.rank}.txt"
    with naming(page):
        page.write_bytes(generate_latest(run.metrics.registry))
    if run.world.is_main:
        config = run.config
        origin = Origin(recipe=run.recipe, data=config.data.train, epochs=config.epochs, seed=config.seed)
        summary |= run.method.export(config.out, origin, first_pictures(run.val))
        draw_curves(config.out / "curves.png", run.run_log, f"{run.recipe}, mixing: {config.mixing.policy}")
        write_summary(config.out / "summary.json", summary)
        log.info("done", extra={key: summary[key] for key in ("top1", "steps", "images", "fallbacks", "seconds")})


def _linger(seconds: float, world: World, request: StopRequest) -> None:
    if seconds > 0 and request.signal is None:
        if world.is_main:
            log.info("metrics_linger", extra={"seconds": seconds})
        request.wait(seconds)  # whoever does not want to wait need not
