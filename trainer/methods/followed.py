"""SAMix online with the mixer on a server: the classifier learns here, and is followed there."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samix.client.online.session import permitted_name
from samix.errors import ArtefactError, MixerError
from samix.mixing.artefact import load_mixer
from samix.mixing.classifier import Classifier
from trainer.export import Origin, export_mixer
from trainer.methods.method import Losses, Method
from trainer.methods.objective import ObjectiveConfig, classify
from trainer.methods.online import ARTEFACT
from trainer.quality import TRIVIAL_SPREAD
from trainer.sessions.keys import forget_key
from trainer.sessions.mixing import FIGURES, MixedOnline, SessionMixing

log = logging.getLogger(__name__)


class ClassifyFollowed(Method):
    """Train a classifier whose weights the server's mixer follows."""

    def __init__(self, classifier: Classifier, objective: ObjectiveConfig) -> None:
        super().__init__(classifier)
        self._objective = objective
        self._mixing: SessionMixing | None = None

    def attach(self, mixing: SessionMixing) -> None:
        """Learn who sends the weights."""
        self._mixing = mixing

    def forward(self, item: MixedOnline) -> Losses:
        """Classify the mixed images, and the clean ones where the objective asks for them."""
        loss = classify(self.classifier, item.mixed, item.clean, self._objective)
        figures = {name: torch.tensor(item.figures[name], device=loss.device) for name in FIGURES}
        return Losses(total=loss, classifier=loss.detach(), figures=figures)

    def updated(self, item: MixedOnline) -> None:
        """Send the weights where they are due."""
        assert self._mixing is not None
        self._mixing.updated(item.step)

    def epoch_done(self, figures: Mapping[str, float], progress: float) -> None:
        """Warn of masks that are still trivial after half of the run."""
        if figures["spread"] < TRIVIAL_SPREAD and progress >= 0.5:
            cure = "train longer, or lower --online.momentum"
            log.warning("masks_still_trivial", extra={"spread": round(figures["spread"], 4), "cure": cure})

    def export(self, folder: Path, origin: Origin, pictures: Tensor) -> dict[str, Any]:
        """Fetch the mixer, write it as an artefact named after the folder, and end the session."""
        assert self._mixing is not None
        session, path = self._mixing.session, folder / ARTEFACT
        assert session is not None
        name = permitted_name(folder.resolve().name)
        try:
            path.write_bytes(session.export(name))
            figures = export_mixer(path, load_mixer(path), pictures, origin)
        except (ArtefactError, MixerError) as error:  # the classifier is trained all the same
            log.warning("mixer_not_exported", extra={"session": session.key.name, "reason": str(error)})
            return {"mixer": None}
        try:
            session.close(name)
            forget_key(folder)
        except MixerError as error:  # the mixer is here all the same
            log.warning("session_not_closed", extra={"session": session.key.name, "reason": str(error)})
        return {"mixer": str(path), **figures}
