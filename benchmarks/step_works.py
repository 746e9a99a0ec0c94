"""What `benchmarks.steps` times whole: training steps, and the pass of a frozen mixer.

One classifier plays every role, so that all steps run through the same weights. A step is what `trainer.loop` does
between two batches: losses are read and plans drawn in it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from samix.errors import ConfigError
from samix.mixing.backbone import BackboneSpec
from samix.mixing.batch import as_unit_float
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.optimise import OptimiserConfig, RunLength
from samix.mixing.plan import generator_for
from samix.mixing.policies import HandCraftedMixer, PolicyName, gradient_saliency, hand_crafted
from samix.mixing.protocol import Mixer
from samix.mixing.update import Update
from services.shards.dataset import Batch
from trainer.loop import train_epoch
from trainer.methods.config import CoTrainingConfig
from trainer.methods.method import Item, Method
from trainer.methods.mixed import ClassifyMixed
from trainer.methods.objective import ObjectiveConfig
from trainer.methods.online import CoTraining
from trainer.metrics import TrainerMetrics
from trainer.model import ModelConfig, build_classifier
from trainer.planning import Planning
from trainer.prefetch import Prepared

Work = Callable[[], object]
"""Something to time; it may be done any number of times."""

SAMIX_P = "SAMix^P"
ONLINE = "SAMix online"
ONLINE_CLEAN = "SAMix online, and clean"
ENCODER = "encoder alone"
SAMIX_P_MIX = "SAMix^P mix"

SGD = OptimiserConfig(lr=0.01)
"""Of the classifier; slow, because it learns noise and its loss must stay finite."""
LENGTH = RunLength(steps_per_epoch=10_000, epochs=1)
"""Of the run that the steps are taken from; only schedules see it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The network and the batch."""

    backbone: BackboneSpec = field(default_factory=lambda: BackboneSpec(name="resnet18", stem="cifar"))
    """Of the classifier and of the mixer's encoder."""
    stage: int = 2
    """Zero-based stage whose features are mixed."""
    image_size: int = 64
    """Side of the images, pixels."""
    batch_size: int = 32
    """Images of a step."""
    num_classes: int = 200
    """Of the classifier."""

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "num_classes"):
            if not 1 <= getattr(self, name) <= 65536:
                raise ConfigError(f"{name} must lie in 1..65536, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A batch of noise, and a classifier with a mixer of each kind, on the CPU."""

    batch: Batch
    """uint8 images and their labels."""
    co_training: CoTraining
    """The classifier, and a mixer that learns beside it."""
    config: CoTrainingConfig
    """Of that mixer; mode `paper`."""
    frozen: FrozenMixer
    """A mixer of the same settings that learns no more."""

    @classmethod
    def build(cls, setting: Setting) -> "Subject":
        """Build with random weights.

        Raises:
            ConfigError: if there is no such backbone or stage.
            BadBatch: if the mixer does not take images of this size.
        """
        config, model = CoTrainingConfig(stage=setting.stage), ModelConfig(backbone=setting.backbone)
        spec = config.mixer_spec(model, setting.image_size)
        spec.check_size(setting.image_size, setting.image_size)
        classifier = build_classifier(model, setting.num_classes, seed=0)
        return cls(
            batch=_noise(setting),
            co_training=CoTraining.build(
                classifier, spec, config, ObjectiveConfig(), seed=0, total_steps=LENGTH.total_steps
            ).train(),
            config=config,
            frozen=random_mixer(spec, seed=0, name="bench"),
        )


def whole_steps(subject: Subject, policies: tuple[PolicyName, ...]) -> dict[str, Work]:
    """Name the training steps from uint8 images to updated weights: policies, SAMix^P in process, SAMix online.

    Raises:
        ConfigError: if the package that a policy needs is not installed.
    """
    classifier = subject.co_training.classifier
    mixers: Mapping[str, Mixer] = {name: _policy(name, subject) for name in policies} | {SAMIX_P: subject.frozen}
    mixed = ClassifyMixed(classifier, ObjectiveConfig())
    update = Update.of([(SGD, classifier)], LENGTH)
    works = {name: _stepping(mixed, update, _mixed(mixer, subject.batch)) for name, mixer in mixers.items()}
    for name, clean_weight in ((ONLINE, 0.0), (ONLINE_CLEAN, 1.0)):
        objective = ObjectiveConfig(clean_weight=clean_weight)
        method = CoTraining(classifier, subject.co_training.online, objective, LENGTH.total_steps)
        update = Update.of(method.parts(SGD, subject.config.mixer_optimiser), LENGTH)
        works[name] = _stepping(method, update, _planned(subject))
    return works


def mixer_passes(subject: Subject) -> dict[str, Work]:
    """Name what a frozen mixer does: its encoder alone on normalised images, and a whole mix of uint8 images."""
    batch, mixer = subject.batch, subject.frozen
    normalised = mixer.net.normalise(as_unit_float(batch.images))
    encode = torch.inference_mode()(mixer.net.encoder.forward)
    return {
        ENCODER: lambda: encode(normalised),
        SAMIX_P_MIX: lambda: mixer.mix(batch.images, batch.labels, seed=0),
    }


def _noise(setting: Setting) -> Batch:
    size, generator = setting.batch_size, generator_for("bench steps")
    shape = (size, 3, setting.image_size, setting.image_size)
    return Batch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        labels=torch.randint(0, setting.num_classes, (size,), generator=generator),
        positions=torch.arange(size),
    )


def _policy(name: PolicyName, subject: Subject) -> HandCraftedMixer:
    # As the trainer has it: PuzzleMix looks where the loss of the network in training is sensitive.
    saliency = gradient_saliency(subject.co_training.classifier) if name == "puzzlemix" else None
    return hand_crafted(name, saliency=saliency)


def _stepping(method: Method, update: Update, items: Iterator[Item]) -> Work:
    steps = train_epoch(method, method, items, update, TrainerMetrics(rank=0), seeds=int)
    return lambda: next(steps)


def _mixed(mixer: Mixer, batch: Batch) -> Iterator[Prepared]:
    for seed in itertools.count():
        yield Prepared(clean=batch.images, mixed=mixer.mix(batch.images, batch.labels, seed=seed))


def _planned(subject: Subject) -> Iterator[Item]:
    planning = Planning(
        config=subject.config, run_seed=0, rank=0, steps_per_epoch=LENGTH.total_steps, device=torch.device("cpu")
    )
    return planning.epoch(0, itertools.repeat(subject.batch))
