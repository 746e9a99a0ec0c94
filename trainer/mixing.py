"""Which mixer a run uses: from a policy's name in the config to something that mixes the batches of an epoch."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, get_args

from samix.client.config import ClientConfig, Encoding, Exchange, Reply
from samix.client.remote import RemoteMixer, connect
from samix.credentials import Credentials, find_credentials
from samix.errors import (
    ConfigError,
    MixerBroken,
    MixerNotFound,
    MixerTimeout,
    MixerUnavailable,
    NotAuthenticated,
    NotPermitted,
    NotTrusted,
)
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.artefact import load_mixer
from samix.mixing.classifier import Classifier
from samix.mixing.plan import SAMIX_ALPHA
from samix.mixing.policies import HandCraftedMixer, PolicyName, gradient_saliency, hand_crafted, usual_alpha
from trainer.exchanges import Trial
from trainer.fallback import Breaker, FailureBudget
from trainer.metrics import TrainerMetrics
from trainer.prefetch import BatchMixing, InProcessMixing, PlanSeed, Prepared, RemoteMixing
from trainer.sessions.config import CoTrainingSessionConfig
from trainer.world import World

log = logging.getLogger(__name__)

Policy = Literal[
    "none",
    "mixup",
    "cutmix",
    "saliencymix",
    "fmix",
    "resizemix",
    "puzzlemix",
    "local",
    "remote",
    "online",
    "remote-online",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class MixingConfig(Credentials):
    """How batches are mixed."""

    policy: Policy = "remote"
    """`remote` asks a mixer server, `local` runs the same mixer in this process, `online` trains one beside the
    classifier (see --online), `remote-online` lets a server train it, the others need no mixer."""
    endpoint: str = "localhost:8001"
    """Address of the mixer server: host:port, dns:///name:port or unix:///path. Batches go by turns to all replicas of
    a list with commas, and to all addresses of a DNS name."""
    mixer: str = ""
    """Name of the mixer on the server; may be empty where it hosts exactly one."""
    artefact: str = ""
    """The .safetensors file of policy `local`."""
    alpha: float = 0.0
    """Both parameters of the Beta distribution of lam; 0 is the policy's usual one: 2 for learned mixers, else 1."""
    per_sample: bool = False
    """Draw one lam for each image instead of one for the batch; policy `online` has --online.per-sample-lam."""
    depth: int = 4
    """Batches under way to the server while the model trains."""
    session: CoTrainingSessionConfig = field(default_factory=CoTrainingSessionConfig)
    """How ranks and server keep in step, for policy `remote-online`."""
    max_bytes_in_flight: int = 256 << 20
    """No further batch is sent while requests of so many bytes wait for their answers, whatever `depth` allows; one
    always may. Of each rank."""
    reply: Literal["masks", "images", "auto"] = "masks"
    """`masks` takes masks from the server and blends the images here; `images` takes mixed images of 8 bits, for
    machines too slow to blend. `auto` tries both on the first batches and keeps to the quicker one."""
    encoding: Literal["raw", "jpeg", "auto"] = "raw"
    """`raw` sends exact pixels; `jpeg` a tenth of the bytes, for thin links: masks are then those of slightly different
    pictures. `auto` tries both on the first batches and keeps to the quicker one. What `auto` finds depends on timing,
    so that runs may differ in the last bits; it is therefore not what runs do by themselves."""
    jpeg_quality: int = 90
    """Of encoding `jpeg`, 1 to 100."""
    encoder_size: int = 0
    """Longer side of smaller copies that go up for masks, in pixels, while the exact images are blended; 0 sends the
    images themselves. Of reply `masks` alone."""
    shared_memory_mib: int = 0
    """Memory to lease from a server behind a unix:/// endpoint, in MiB, through which exact pixels then travel: `depth`
    batches should fit. 0 leases none. Of each rank; the server lends it from its --shared-memory-mib."""
    deadline_s: float = 5.0
    """Longest a mix may take, retries included; then the fallback mixes the batch. Seconds."""
    startup_timeout_s: float = 60.0
    """Longest to wait for the server before the first step, seconds."""
    fallback: PolicyName = "cutmix"
    """Mixes the batches that the server could not."""
    failure_budget: int = 1000
    """Batches of one epoch that a rank may mix by the fallback before the run fails."""

    def __post_init__(self) -> None:
        Credentials.__post_init__(self)
        if self.depth < 1:
            raise ConfigError(f"mixing.depth must be at least 1, got {self.depth}")
        if self.max_bytes_in_flight < 1:
            raise ConfigError(f"mixing.max_bytes_in_flight must be at least 1, got {self.max_bytes_in_flight}")
        if self.reply == "images" and self.encoding != "raw":
            raise ConfigError(
                f"mixing.reply 'images' with mixing.encoding {self.encoding!r} would train on decoded JPEGs; take "
                "encoding 'raw'"
            )
        if self.encoder_size < 0:
            raise ConfigError(f"mixing.encoder_size must be at least 0, got {self.encoder_size}; 0 sends whole images")
        if self.encoder_size and self.reply != "masks":
            raise ConfigError(
                f"mixing.encoder_size {self.encoder_size} with mixing.reply {self.reply!r} would train on smaller "
                "copies; take reply 'masks'"
            )
        if self.shared_memory_mib < 0:
            raise ConfigError(f"mixing.shared_memory_mib must be at least 0, got {self.shared_memory_mib}")
        if self.shared_memory_mib and "unix:///" not in self.endpoint:
            raise ConfigError(
                f"mixing.shared_memory_mib {self.shared_memory_mib} needs a unix:/// endpoint, got {self.endpoint!r}"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"mixing.jpeg_quality must lie in 1..100, got {self.jpeg_quality}")
        if not 0 <= self.alpha < math.inf:
            raise ConfigError(f"mixing.alpha must be positive, or 0 for the policy's usual one, got {self.alpha}")
        for name in ("deadline_s", "startup_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"mixing.{name} must be a positive number of seconds, got {getattr(self, name)}")
        if self.failure_budget < 0:
            raise ConfigError(f"mixing.failure_budget must be at least 0, got {self.failure_budget}")
        if self.policy == "local" and not self.artefact:
            raise ConfigError("mixing.policy 'local' needs --mixing.artefact FILE.safetensors")

    @property
    def resolved_alpha(self) -> float:
        """The alpha that is used."""
        if self.alpha:
            return self.alpha
        if self.policy in ("local", "remote", "online", "remote-online"):
            return SAMIX_ALPHA
        return usual_alpha(self.policy)


@contextmanager
def open_mixing(
    config: MixingConfig,
    *,
    seed: int,
    image_size: int,
    batch_size: int,
    world: World,
    metrics: TrainerMetrics,
    classifier: Classifier,
) -> Iterator[BatchMixing[Prepared]]:
    """Make what mixes this rank's batches, and close it at the end.

    Args:
        config: which policy; not `online` and `remote-online`, which bring mixing of their own.
        seed: of the run.
        image_size: side of the images, pixels.
        batch_size: images of one batch of this rank.
        world: this rank.
        metrics: where waits and answers are counted.
        classifier: what is trained; PuzzleMix asks it where to look.

    Raises:
        ConfigError: if the server is not there, has no such mixer, or its mixer does not take such images.
        ArtefactError: if the artefact of policy `local` cannot be used.
    """
    plans = PlanSeed(run_seed=seed, rank=world.rank, alpha=config.resolved_alpha, per_sample=config.per_sample)
    if config.policy == "local":
        mixer = load_mixer(config.artefact, str(world.device))
        mixer.spec.check_size(image_size, image_size)
        yield InProcessMixing(mixer, plans, world.device, metrics)
        return
    if config.policy not in ("remote", "online", "remote-online"):
        policy = fallback_policy(config.policy, config.resolved_alpha, classifier)
        yield InProcessMixing(policy, replace(plans, lam_of_draw=policy.lam_of_draw), world.device, metrics)
        return
    client = ClientConfig(
        deadline_s=config.deadline_s,
        shared_memory_mib=config.shared_memory_mib,
        credentials=find_credentials(config),
    )
    with connect(config.endpoint, mixer=config.mixer, config=client, observer=metrics) as remote:
        info = _wait_for_server(config, remote)
        _check_size(info, min(image_size, config.encoder_size or image_size), image_size)
        _check_batch(info, batch_size)
        if world.is_main:
            log.info("mixer", extra={"endpoint": config.endpoint, "mixer": info.name, "version": info.version})
        yield RemoteMixing(
            remote,
            fallback=fallback_policy(config.fallback, usual_alpha(config.fallback), classifier),
            plans=plans,
            depth=config.depth,
            max_bytes_in_flight=config.max_bytes_in_flight,
            trial=Trial(_candidates(config, info, world.rank), rank=world.rank),
            breaker=Breaker(),
            budget=FailureBudget(config.failure_budget, config.endpoint),
            device=world.device,
            metrics=metrics,
        )


def fallback_policy(name: PolicyName, alpha: float, classifier: Classifier) -> HandCraftedMixer:
    """Make a hand-crafted policy with this alpha, for the classifier that is trained."""
    # PuzzleMix looks where the loss of the network in training is sensitive, as its paper has it.
    return hand_crafted(name, alpha, saliency=gradient_saliency(classifier) if name == "puzzlemix" else None)


def _wait_for_server(config: MixingConfig, remote: RemoteMixer) -> pb.MixerInfo:
    try:
        return remote.wait_ready(config.startup_timeout_s)
    except NotTrusted as error:
        raise ConfigError(str(error)) from error
    except (MixerUnavailable, MixerTimeout) as error:
        raise ConfigError(
            f"no mixer was ready at {config.endpoint} within {config.startup_timeout_s:g} s ({error}); "
            "start one with `samix serve`, or choose another --mixing.endpoint or --mixing.policy"
        ) from error
    except MixerNotFound as error:
        raise ConfigError(f"{error}; set --mixing.mixer") from error
    except MixerBroken as error:
        raise ConfigError(f"what listens at {config.endpoint} is no mixer server ({error})") from error
    except (NotAuthenticated, NotPermitted) as error:
        raise ConfigError(f"{error}; set --mixing.token-file") from error


def _check_size(info: pb.MixerInfo, sent_size: int, image_size: int) -> None:
    setting = "data.image_size" if sent_size == image_size else "mixing.encoder_size"
    if not info.min_side <= sent_size <= info.max_side:
        raise ConfigError(
            f"mixer {info.name} takes images of {info.min_side} to {info.max_side} pixels, {setting} is "
            f"{sent_size}; change it or choose another mixer"
        )
    tokens = math.ceil(sent_size / info.stride) ** 2
    if tokens > info.max_tokens:
        raise ConfigError(
            f"images of {sent_size} pixels make {tokens} tokens, mixer {info.name} takes {info.max_tokens}; make "
            f"{setting} smaller or choose another mixer"
        )


def _check_batch(info: pb.MixerInfo, batch_size: int) -> None:
    if batch_size > info.max_images:
        raise ConfigError(
            f"a rank's batch has {batch_size} images, the server takes {info.max_images} in one request; make "
            "data.global-batch smaller, use more ranks, or raise the server's --requests.max-images"
        )


def _candidates(config: MixingConfig, info: pb.MixerInfo, rank: int) -> list[Exchange]:
    """List the exchanges that may be used with this server, the usual one first."""
    encodings: tuple[Encoding, ...] = get_args(Encoding) if config.encoding == "auto" else (config.encoding,)
    replies: tuple[Reply, ...] = get_args(Reply) if config.reply == "auto" else (config.reply,)
    if "jpeg" in encodings and pb.PIXEL_FORMAT_JPEG not in info.pixel_formats:
        if config.encoding == "jpeg":
            raise ConfigError(
                f"the server of mixer {info.name} reads no JPEGs; upgrade it, or set --mixing.encoding raw"
            )
        log.warning("mixer_reads_no_jpeg", extra={"rank": rank, "mixer": info.name, "encoding": "raw"})
        encodings = ("raw",)
    return [
        Exchange(
            reply=reply,
            encoding=encoding,
            jpeg_quality=config.jpeg_quality,
            encoder_size=config.encoder_size or None,
        )
        for reply, encoding in product(replies, encodings)
        if (reply, encoding) != ("images", "jpeg")  # would train on decoded JPEGs
    ]
