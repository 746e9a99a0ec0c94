"""Recipes whose mixer a server trains: those of `trainer.online_recipes`, with the mixer's half elsewhere."""

from dataclasses import replace

from trainer.config import TrainConfig
from trainer.mixing import MixingConfig
from trainer.online_recipes import ONLINE_RECIPES
from trainer.sessions.config import CoTrainingSessionConfig


def on_server(config: TrainConfig, session: CoTrainingSessionConfig, *, deadline_s: float = 5.0) -> TrainConfig:
    """Let a server train the mixer of a recipe."""
    mixing = MixingConfig(policy="remote-online", alpha=config.mixing.alpha, deadline_s=deadline_s, session=session)
    return replace(config, mixing=mixing)


def _recipe(name: str, text: str, session: CoTrainingSessionConfig) -> tuple[str, TrainConfig]:
    return text, on_server(ONLINE_RECIPES[name][1], session)


SESSION_RECIPES: dict[str, tuple[str, TrainConfig]] = {
    "cifar100_r18_samix_online": _recipe(
        "cifar100_r18_samix",
        "CIFAR-100, ResNet-18, SAMix with the mixer trained by a server, 400 epochs.",
        CoTrainingSessionConfig(weights_every=10),
    ),
    "cub_r18_samix_online": _recipe(
        "cub_r18_samix",
        "CUB-200, ResNet-18 from ImageNet weights, SAMix with the mixer trained by a server, 200 epochs.",
        CoTrainingSessionConfig(weights_every=5),
    ),
}
"""By name, what they are and the full configuration."""
