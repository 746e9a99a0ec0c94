"""Co-training sessions on a server of milliseconds, beside the in-process pipeline that they must agree with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from co_training import co_training, planned
from learning import NUM_CLASSES, SIDE
from serving import WAIT_S, serve, wait_until
from torch import Tensor

from mixer_server.app import MixerServer
from mixer_server.online.checkpoints import Checkpoints, SessionRecord
from mixer_server.online.config import OnlineServiceConfig
from mixer_server.online.keys import hash_token
from mixer_server.online.learner import Learner
from samix.client.channel import Connection
from samix.client.config import ClientConfig
from samix.client.online.observer import SilentOnlineObserver
from samix.client.online.rank import MixAnswer, RankStream
from samix.client.online.session import OnlineSession, SessionKey
from samix.client.online.weights import WeightSender
from samix.cotraining.settings import Learning, SessionSettings
from samix.cotraining.wire import TrainCall
from samix.mixer.v1 import online_pb2 as pb
from samix.mixing.batch import as_unit_float
from samix.mixing.online import floating_state
from samix.mixing.optimise import OptimiserConfig, RunLength
from samix.mixing.students import compose_students
from samix.mixing.update import Update
from trainer.methods.online import CoTraining
from trainer.planning import Planned

TOTAL_STEPS = 40
BATCH = 8
SILENT = SilentOnlineObserver()
MIXERS = OptimiserConfig(lr=0.01, weight_decay=1e-4)


def pipeline(mode: str, **online: Any) -> CoTraining:
    """Start the in-process pipeline, for a run of TOTAL_STEPS steps."""
    method = co_training(mode=mode, per_sample_lam=mode == "paper", **online)
    method._total_steps = TOTAL_STEPS
    return method


def updates(method: CoTraining, *, lr: float = 0.01) -> Update:
    """Make its optimisers."""
    parts = method.parts(OptimiserConfig(lr=lr), replace(MIXERS, lr=lr))
    return Update.of(parts, RunLength(steps_per_epoch=TOTAL_STEPS, epochs=1))


def settings_of(method: CoTraining, *, lr: float = 0.01, **changes: Any) -> SessionSettings:
    """Describe the session that computes what this pipeline does."""
    values: dict[str, Any] = {
        "mixer": replace(method.online.spec, image_size=SIDE),
        "learning": Learning(online=method.online.config, optimiser=replace(MIXERS, lr=lr)),
        "num_classes": NUM_CLASSES,
        "clean_head": method.classifier.head_one is not None,
        "world_size": 1,
        "batch_size": BATCH,
        "length": RunLength(steps_per_epoch=TOTAL_STEPS, epochs=1),
        "seed": 0,
    }
    return SessionSettings(**values | changes)


def items_of(step: int, world_size: int, mode: str) -> list[Planned]:
    """Make the batches of all ranks at a step; masks are adjusted at every other one."""
    items = [planned(step, rank=rank, size=BATCH, per_sample_lam=mode == "paper") for rank in range(world_size)]
    return [replace(item, plans=replace(item.plans, adjusts=step % 2 == 1)) for item in items]


def step_in_process(method: CoTraining, update: Update, items: Sequence[Planned]) -> tuple[list[Tensor], list[float]]:
    """Do a step as DDP would; returns the masks of each rank's students and the mixer's losses, averaged."""
    masks, figures = [], []
    for rank, item in enumerate(items):
        kept = [(buffer, buffer.clone()) for buffer in method.buffers()] if rank else []
        masks.append(masks_in_process(method, item))
        losses = method(item)
        update.backward(losses.total / len(items))
        figures.append([losses.figures[name].item() for name in ("mixer_loss", "lam_error", "spread")])
        for buffer, before in kept:
            buffer.copy_(before)
    update.step()
    method.updated(items[0])
    return masks, torch.tensor(figures).mean(dim=0).tolist()


def masks_in_process(method: CoTraining, item: Planned) -> Tensor:
    """Look at the masks of a rank's students, and leave no trace."""
    kept = [(buffer, buffer.clone()) for buffer in method.buffers()]
    images = as_unit_float(item.images)
    masks = method.online.mix(images, item.labels, method.online.features(images), item.plans).masks
    for buffer, before in kept:
        buffer.copy_(before)
    return masks


@contextmanager
def training_server(folder: Path, *, grpc_port: int = 0, **online: Any) -> Iterator[MixerServer]:
    """Serve co-training and no mixers."""
    config = OnlineServiceConfig(**{"memory_mib": 512, "folder": folder, "checkpoint_steps": 1000} | online)
    with serve(online=config, grpc_port=grpc_port) as server:
        yield server


@contextmanager
def owned(server: MixerServer | str, settings: SessionSettings, key: SessionKey | None = None) -> Iterator["Owner"]:
    """Own a session: its calls, and the streams of its ranks."""
    address = server if isinstance(server, str) else server.addresses["grpc"]
    connection = Connection(address, ClientConfig())
    owner = Owner(OnlineSession(connection, key or SessionKey.draw("test"), settings))
    try:
        yield owner
    finally:
        owner.close()
        connection.close()


class Owner:
    """All that trainers do with a session."""

    def __init__(self, session: OnlineSession) -> None:
        self.session = session
        self.ranks: dict[int, RankStream] = {}
        self.sender: WeightSender | None = None

    def open(self, step: int = 0) -> None:
        """Open the session, and get ready to send weights."""
        opened = self.session.open(step, timeout_s=WAIT_S)
        if self.sender is None:
            self.sender = WeightSender(self.session, opened.shapes, SILENT)
            self.sender.start()

    def send(self, step: int, classifier: torch.nn.Module) -> None:
        """Send weights, and wait until they are there."""
        assert self.sender is not None
        self.sender.offer(step, floating_state(classifier), "float32")
        assert self.sender.wait_sent(WAIT_S)

    def ask(self, items: Sequence[Planned]) -> list[MixAnswer]:
        """Have the batches of all ranks mixed."""
        pending = [self.rank(rank).submit(call_of(item), WAIT_S) for rank, item in enumerate(items)]
        return [one.result(WAIT_S) for one in pending]

    def rank(self, rank: int) -> RankStream:
        """Find the stream of a rank."""
        return self.ranks.setdefault(rank, RankStream(self.session, rank, SILENT))

    def state(self) -> pb.SessionState:
        """Ask where the session stands."""
        return self.session.state(timeout_s=WAIT_S)

    def learned(self, step: int) -> pb.OnlineLosses:
        """Wait until a step is learned, and return what it cost."""
        wait_until(lambda: self.state().step > step)
        losses = self.state().losses
        assert losses.step == step
        return losses

    def close(self) -> None:
        """End streams and threads."""
        for stream in self.ranks.values():
            stream.close()
        if self.sender is not None:
            self.sender.close()


def goes_on(owner: Owner) -> bool:
    """Whether the next step is mixed and learned."""
    step = owner.state().step
    owner.ask(items_of(step, 1, "paper"))
    return owner.learned(step).step == step


def refused(call: Callable[[], Any]) -> grpc.StatusCode:
    """Return the status that a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code()


def call_of(item: Planned) -> TrainCall:
    """Make what goes up of a batch."""
    return TrainCall(step=item.step, images=item.images, labels=item.labels, plans=item.plans)


def masks_of(settings: SessionSettings, item: Planned, answer: MixAnswer) -> Tensor:
    """Render what came down."""
    spec = settings.mixer
    return compose_students(
        as_unit_float(item.images), item.labels, item.plans, answer.logits, spec.rendering, mode=spec.mode
    ).masks


def write_state(
    folder: Path, key: SessionKey, settings: SessionSettings, method: CoTraining, update: Update, step: int
):
    """Write the state of the in-process pipeline as the checkpoint of a session."""
    learner = Learner.build(settings, torch.device("cpu"))
    learner.mixer.load_state_dict(method.online.state_dict())
    learner._optimiser.load_state_dict(update.optimisers[1].state_dict())
    record = SessionRecord(
        name=key.name, token_sha256=hash_token(key.token), settings=settings, step=step, weights_step=step
    )
    Checkpoints(folder).save(record, learner.tensors())
