"""AutoMix, AMix and SAMix online: the mixer learns beside the classifier that it mixes for."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from samix.mixing.batch import as_unit_float
from samix.mixing.classifier import Classifier
from samix.mixing.online import OnlineMixer
from samix.mixing.online_config import OnlineConfig
from samix.mixing.online_openmixup import seeded_online_mixer
from samix.mixing.optimise import OptimiserConfig
from samix.mixing.spec import MixerSpec
from trainer.export import Origin, export_mixer
from trainer.methods.method import Head, Losses, Method
from trainer.methods.objective import ObjectiveConfig, classify
from trainer.planning import Planned
from trainer.quality import TRIVIAL_SPREAD

log = logging.getLogger(__name__)

ARTEFACT = "mixer.safetensors"
"""What a run leaves the trained mixer as."""


class CoTraining(Method):
    """A classifier, and the mixer that makes its batches: one backward per step, no parameter in common."""

    def __init__(
        self, classifier: Classifier, online: OnlineMixer, objective: ObjectiveConfig, total_steps: int
    ) -> None:
        super().__init__(classifier)
        self.online = online
        self._objective = objective
        self._total_steps = total_steps

    @classmethod
    def build(
        cls,
        classifier: Classifier,
        spec: MixerSpec,
        config: OnlineConfig,
        objective: ObjectiveConfig,
        *,
        seed: int,
        total_steps: int,
    ) -> Self:
        """Give a classifier a mixer in training; the global random state is left as it was.

        Args:
            classifier: what is trained; the momentum copy starts from it.
            spec: settings of the mixer.
            config: how it learns.
            objective: the classifier's loss.
            seed: of the block's weights; the same on every rank.
            total_steps: steps of the whole run.

        Raises:
            ConfigError: if the settings contradict each other.
        """
        online = seeded_online_mixer(spec, config, classifier, seed=seed)
        return cls(classifier, online, objective, total_steps)

    def forward(self, item: Planned) -> Losses:
        """Let the mixer learn from one mix and the classifier from another; both share the features of the batch."""
        images, labels, plans = as_unit_float(item.images), item.labels, item.plans
        features = self.online.features(images)
        mixer = self.online.loss(images, labels, features, plans.mixers, step=item.step, total_steps=self._total_steps)
        mixed = self.online.mix(images, labels, features, plans)
        classifier = classify(self.classifier, mixed, images, self._objective)
        return Losses(
            total=classifier + mixer.total,
            classifier=classifier.detach(),
            figures={"mixer_loss": mixer.classification, "lam_error": mixer.lam_error, "spread": mixer.spread},
        )

    def updated(self, item: Planned) -> None:
        """Bring gamma back into its bounds, and let the momentum copy follow."""
        self.online.block.project()
        self.online.follow(self.classifier, step=item.step, total_steps=self._total_steps)

    def epoch_done(self, figures: Mapping[str, float], progress: float) -> None:
        """Warn of masks that are still trivial after half of the run."""
        if figures["spread"] < TRIVIAL_SPREAD and progress >= 0.5:
            cure = "train longer, or lower --online.momentum"
            log.warning("masks_still_trivial", extra={"spread": round(figures["spread"], 4), "cure": cure})

    def parts(self, classifiers: OptimiserConfig, mixers: OptimiserConfig) -> list[tuple[OptimiserConfig, nn.Module]]:
        """Tell what learns: classifier and block each have an optimiser with settings of their own."""
        return [(classifiers, self.classifier), (mixers, self.online.block)]

    def further_state(self) -> dict[str, Any]:
        """Return momentum copy and block."""
        return {"online": self.online.state_dict()}

    def load_further_state(self, state: dict[str, Any]) -> None:
        """Take up momentum copy and block.

        Raises:
            RuntimeError: if it is of another method or mixer.
        """
        if "online" not in state:
            raise RuntimeError("it holds no mixer in training")
        self.online.load_state_dict(state["online"])

    def export(self, folder: Path, origin: Origin, pictures: Tensor) -> dict[str, Any]:
        """Write the mixer as an artefact named after the folder."""
        path = folder / ARTEFACT
        mixer = self.online.freeze(folder.resolve().name)
        return {"mixer": str(path), **export_mixer(path, mixer, pictures, origin)}

    def further_heads(self) -> dict[str, Head]:
        """Name the head of clean images where there is one, and the momentum copy's."""
        heads = {f"{name}_q": head for name, head in self.classifier.heads().items()}
        heads |= {f"{name}_k": head for name, head in self.online.classifier.heads().items()}
        return heads
