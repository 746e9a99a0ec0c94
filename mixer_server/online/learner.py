"""The arithmetic of one session: what the in-process pipeline does in a step, cut where the network lies between.

Ranks are served one after the other on one copy of the mixer. Passes of other ranks than 0 leave no trace in buffers
such as batch-norm statistics, as DDP has it, which broadcasts those of rank 0 before each step. Nothing here knows
threads; passes that draw dropout use torch's global generator, so that one learner must work at a time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from samix.cotraining.settings import SessionSettings
from samix.cotraining.wire import TrainCall
from samix.mixer.v1 import online_pb2 as pb
from samix.mixing.batch import as_unit_float
from samix.mixing.frozen import FrozenMixer
from samix.mixing.online import OnlineMixer, floating_state
from samix.mixing.online_openmixup import seeded_online_mixer
from samix.mixing.optimise import OptimiserConfig
from samix.mixing.plan import derive_seed
from samix.mixing.update import Update

_OPTIMISER = "optimiser."
_MIXER = "mixer."


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What the mixer's loss was on one batch; as the fields of `MixerLoss`."""

    classification: float
    mask: float
    lam_error: float
    spread: float

    @property
    def is_finite(self) -> bool:
        """Whether all of them are numbers."""
        return all(map(math.isfinite, (self.classification, self.mask, self.lam_error, self.spread)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixed:
    """A batch that was mixed for its rank; the mixer has yet to learn from it."""

    call: TrainCall
    """The batch, on the learner's device."""
    rank: int
    """Whose it is."""
    features: Tensor
    """[B, C, h, w] of the momentum copy."""
    logits: Tensor
    """float32 [B, 1, h, w], the answer."""


class Learner:
    """A mixer in training, and its optimiser."""

    def __init__(self, settings: SessionSettings, mixer: OnlineMixer, update: Update, device: torch.device) -> None:
        self.settings = settings
        self.mixer = mixer
        self._update = update
        self._device = device

    @classmethod
    def build(cls, settings: SessionSettings, device: torch.device) -> "Learner":
        """Build with a block drawn from the seed; the momentum copy waits for `start_from`.

        Raises:
            ConfigError: if settings contradict each other.
        """
        classifier, online = settings.build_classifier(), settings.learning.online
        mixer = seeded_online_mixer(settings.mixer, online, classifier, seed=settings.seed).to(device)
        optimiser: OptimiserConfig = settings.learning.optimiser
        update = Update.of([(optimiser, mixer.block)], settings.length, device=device.type)
        return cls(settings, mixer, update, device)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights that trainers send, in the order in which they travel."""
        return {name: tuple(value.shape) for name, value in floating_state(self.mixer.classifier).items()}

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Make the momentum copy equal to the classifier, as it is when training begins."""
        self.mixer.classifier.load_state_dict(weights, strict=False)

    def catch_up(self, weights: Mapping[str, Tensor], steps: range) -> None:
        """Let the momentum copy follow, over the steps since the last time; see `OnlineMixer.catch_up`."""
        if steps:
            ours = {name: value.to(self._device) for name, value in weights.items()}
            self.mixer.catch_up(ours, steps=steps, total_steps=self.settings.length.total_steps)

    def mix(self, call: TrainCall, rank: int) -> Mixed:
        """Predict the masks of a rank's batch.

        Raises:
            FloatingPointError: if they are no numbers.
        """
        call = TrainCall(
            step=call.step,
            images=call.images.to(self._device),
            labels=call.labels.to(self._device),
            plans=call.plans.to(self._device),
        )
        with self._kept_buffers(rank), self._drawing(call.step, rank, "students"):
            features = self.mixer.features(as_unit_float(call.images))
            logits = self.mixer.mask_logits(features, call.plans.students)
        if not logits.isfinite().all():
            raise FloatingPointError(f"the masks of step {call.step} are not finite")
        return Mixed(call=call, rank=rank, features=features, logits=logits)

    def learn(self, mixed: Mixed) -> Figures:
        """Add the gradient of the mixer's loss on one rank's batch; none where the loss is no number."""
        call = mixed.call
        with self._kept_buffers(mixed.rank):  # beyond the backward, which reads buffers
            with self._drawing(call.step, mixed.rank, "dropout"):
                loss = self.mixer.loss(
                    as_unit_float(call.images),
                    call.labels,
                    mixed.features,
                    call.plans.mixers,
                    step=call.step,
                    total_steps=self.settings.length.total_steps,
                )
            parts = torch.stack([loss.total.detach(), loss.classification, loss.mask, loss.lam_error, loss.spread])
            total, classification, mask, lam_error, spread = parts.tolist()
            if math.isfinite(total):
                self._update.backward(loss.total)
        return Figures(classification=classification, mask=mask, lam_error=lam_error, spread=spread)

    def finish_step(self, step: int, num_batches: int) -> bool:
        """Step the block by the mean gradient of so many batches; False, and no step, where it is not finite."""
        gradients = [parameter.grad for parameter in self.mixer.block.parameters() if parameter.grad is not None]
        if not all(gradient.isfinite().all() for gradient in gradients):  # a finite loss may have such, too
            self.forget_gradients()
            return False
        for gradient in gradients if num_batches > 1 else ():
            gradient.div_(num_batches)
        self._update.stand_at(step)
        self._update.step()
        self.mixer.block.project()
        return True

    def forget_gradients(self) -> None:
        """Begin a step anew."""
        self.mixer.block.zero_grad(set_to_none=True)

    def freeze(self, name: str) -> FrozenMixer:
        """Cut out the mixer as it is now."""
        return self.mixer.freeze(name)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that a checkpoint needs, by name: copies on the CPU."""
        found = {f"{_MIXER}{name}": value for name, value in self.mixer.state_dict().items()}
        for index, state in self._optimiser.state_dict()["state"].items():
            found |= {f"{_OPTIMISER}{index}.{name}": value for name, value in state.items() if value is not None}
        return {name: value.detach().cpu().clone().contiguous() for name, value in found.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` returned.

        Raises:
            RuntimeError, ValueError: if it is of another session.
        """
        mixer = {name.removeprefix(_MIXER): value for name, value in tensors.items() if name.startswith(_MIXER)}
        self.mixer.load_state_dict(mixer)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(_OPTIMISER):
                index, _, part = name.removeprefix(_OPTIMISER).partition(".")
                state.setdefault(int(index), {})[part] = value
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": state, "param_groups": groups})

    @property
    def _optimiser(self) -> torch.optim.Optimizer:
        return self._update.optimisers[0]

    @contextmanager
    def _kept_buffers(self, rank: int) -> Iterator[None]:
        """Undo what passes of other ranks than 0 do to buffers."""
        kept = [] if rank == 0 else [(buffer, buffer.clone()) for buffer in self.mixer.buffers()]
        yield
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)

    @contextmanager
    def _drawing(self, step: int, rank: int, purpose: str) -> Iterator[None]:
        """Compute in the session's precision; what is drawn follows from step and rank, as in the trainers."""
        devices = [self._device] if self._device.type == "cuda" else []
        epoch, in_epoch = divmod(step, self.settings.length.steps_per_epoch)
        is_half = self.settings.precision == "bf16"
        with (
            torch.random.fork_rng(devices=devices),
            torch.autocast(self._device.type, torch.bfloat16, enabled=is_half),
        ):
            torch.manual_seed(derive_seed(self.settings.seed, purpose, epoch, in_epoch, rank))
            yield


def mean_losses(step: int, figures: Sequence[Figures]) -> pb.OnlineLosses:
    """Average what a step cost over its batches."""
    means = {
        name: math.fsum(getattr(one, name) for one in figures) / len(figures)
        for name in ("classification", "mask", "lam_error", "spread")
    }
    return pb.OnlineLosses(step=step, **means)
