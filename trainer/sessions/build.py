"""From a run's config to its session, and to the method that the session's mixer mixes for."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields

from samix.client.channel import Connection, check_targets
from samix.client.config import ClientConfig
from samix.cotraining.settings import Learning, SessionSettings
from samix.cotraining.wire import WeightKind
from samix.credentials import find_credentials
from samix.errors import ConfigError
from samix.mixing.online_config import OnlineConfig
from samix.mixing.optimise import RunLength
from samix.mixing.policies import usual_alpha
from trainer.config import TrainConfig
from trainer.fallback import Breaker, FailureBudget
from trainer.methods.config import CoTrainingConfig, needs_clean_head
from trainer.methods.followed import ClassifyFollowed
from trainer.metrics import TrainerMetrics
from trainer.mixing import fallback_policy
from trainer.model import build_classifier
from trainer.sessions.mixing import Drawing, SessionMixing
from trainer.sessions.opening import SessionOpener
from trainer.world import World

_WEIGHTS: dict[str, WeightKind] = {"fp32": "float32", "bf16": "bfloat16"}


def build_followed(config: TrainConfig) -> ClassifyFollowed:
    """Build the classifier of a run whose mixer is on a server.

    Raises:
        ConfigError: if there is no such backbone, or the run asks for what a session cannot do.
    """
    if config.accumulate > 1:
        raise ConfigError(
            f"--accumulate {config.accumulate} with --mixing.policy remote-online would need several mixes a step; "
            "use more ranks or smaller batches"
        )
    if len(check_targets(config.mixing.endpoint)) > 1:
        raise ConfigError(
            f"a session is on one server, --mixing.endpoint names several: {config.mixing.endpoint}; name one"
        )
    clean_head = needs_clean_head(config.online, config.objective)
    classifier = build_classifier(config.model, config.data.num_classes, seed=config.seed, clean_head=clean_head)
    return ClassifyFollowed(classifier, config.objective)


@contextmanager
def open_session_mixing(
    config: TrainConfig,
    drawing: CoTrainingConfig,
    method: ClassifyFollowed,
    world: World,
    metrics: TrainerMetrics,
    *,
    steps_per_epoch: int,
) -> Iterator[SessionMixing]:
    """Make what mixes this rank's batches in the run's session, and leave it at the end.

    Args:
        config: of the run.
        drawing: how the mixer learns and plans are drawn.
        method: what is trained; it is told who sends its weights.
        world: this rank.
        metrics: where waits, answers and weights are counted.
        steps_per_epoch: of every rank.

    Raises:
        ConfigError, BadBatch: if the mixer would not take such images.
    """
    mixing = config.mixing
    online = OnlineConfig(**{field.name: getattr(drawing, field.name) for field in fields(OnlineConfig)})
    length = RunLength(steps_per_epoch=steps_per_epoch, epochs=config.epochs)
    settings = _session_settings(config, online, length, method, world)
    client = ClientConfig(deadline_s=mixing.deadline_s, credentials=find_credentials(mixing))
    opener = SessionOpener(
        Connection(mixing.endpoint, client),
        settings,
        world=world,
        folder=config.out,
        startup_timeout_s=mixing.startup_timeout_s,
    )
    session_mixing = SessionMixing(
        opener,
        classifier=method.classifier,
        fallback=fallback_policy(mixing.fallback, usual_alpha(mixing.fallback), method.classifier),
        drawing=Drawing(config=online, run_seed=config.seed, rank=world.rank, steps_per_epoch=steps_per_epoch),
        depth=mixing.depth,
        deadline_s=mixing.deadline_s,
        breaker=Breaker(),
        budget=FailureBudget(mixing.failure_budget, mixing.endpoint),
        device=world.device,
        metrics=metrics,
        weights=_WEIGHTS[mixing.session.weights],
    )
    method.attach(session_mixing)
    with closing(session_mixing):
        yield session_mixing


def _session_settings(
    config: TrainConfig, online: OnlineConfig, length: RunLength, method: ClassifyFollowed, world: World
) -> SessionSettings:
    session = config.mixing.session
    return SessionSettings(
        mixer=config.online.mixer_spec(config.model, config.data.image_size),
        learning=Learning(online=online, optimiser=config.online.mixer_optimiser, drop_path=config.model.drop_path),
        num_classes=config.data.num_classes,
        clean_head=method.classifier.head_one is not None,
        world_size=world.size,
        batch_size=config.data.global_batch // world.size,
        length=length,
        seed=config.seed,
        weights_every=session.weights_every,
        max_staleness=session.max_staleness,
        precision="bf16" if config.precision == "bf16" else "fp32",
        logits=session.logits,
        recipe=config.out.resolve().name,
    )
