"""Learned mixers to look at, whether their weights lie in a file here or behind the address of a server."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from samix.client.config import ClientConfig, Exchange
from samix.client.pixels import shrink
from samix.client.remote import RemoteMixer, connect
from samix.credentials import Credentials, find_credentials
from samix.errors import ConfigError, MixerBroken
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.artefact import load_mixer
from samix.mixing.batch import MixedBatch
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import resolve_plan
from samix.mixing.render import compose

DEFAULT_PORT = 8001
"""Of a server's gRPC, where an address names none."""

_NO_CREDENTIALS = Credentials()
_PATIENT = ClientConfig(deadline_s=30.0)  # a person waits longer for a CPU than a training step does


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedMixer:
    """A mixer that was trained, wherever it runs."""

    title: str
    """Name and version, as they are written on pictures."""
    image_size: int
    """Side of the images it was trained on, in pixels; 0 where a server does not say."""
    mixer: FrozenMixer | RemoteMixer
    """What mixes."""

    def mix_pair(self, pair: Tensor, lam: float, *, encoder_size: int) -> MixedBatch:
        """Mix two pictures in both orders at once, by masks of smaller copies.

        Args:
            pair: uint8 [2, 3, H, W].
            lam: share of each picture in its own mix.
            encoder_size: longer side of the copies, in pixels; pictures that are no larger are looked at themselves.

        Raises:
            BadBatch: if the mixer does not take copies of that size.
            MixerError: if a server does not answer.
        """
        plan = resolve_plan(len(pair), lam=lam, partner=torch.tensor([1, 0]), generator=None)
        if isinstance(self.mixer, RemoteMixer):
            return self.mixer.submit(pair, plan=plan, exchange=Exchange(encoder_size=encoder_size)).result()
        logits = self.mixer.mask_logits(shrink(pair, encoder_size), plan)
        return compose(pair, None, plan, logits, self.mixer.spec.rendering)


def open_file(path: Path, device: torch.device) -> LearnedMixer:
    """Load a mixer into this process.

    Raises:
        ArtefactError: if the file is no mixer.
    """
    mixer = load_mixer(path, str(device))
    return LearnedMixer(title=f"{mixer.name} {mixer.version}", image_size=mixer.spec.image_size, mixer=mixer)


@contextmanager
def open_served(
    address: str, names: Sequence[str] = (), credentials: Credentials = _NO_CREDENTIALS
) -> Iterator[list[LearnedMixer]]:
    """Connect to mixers of a running server until the end of the block.

    Args:
        address: as of `connect`; without a port, DEFAULT_PORT.
        names: of the mixers; none takes all.
        credentials: what the server is shown; the environment fills what is empty.

    Raises:
        InputError: if it is no address.
        ConfigError: if the server hosts no mixer, or none of a name.
        MixerError: if it does not answer.
    """
    target = with_port(address)
    config = replace(_PATIENT, credentials=find_credentials(credentials))
    with ExitStack() as connections, connect(target, config=config) as server:
        hosted = _list_mixers(server, target)
        chosen = [info for info in hosted if info.name in names] if names else hosted
        if unknown := set(names) - {info.name for info in chosen}:
            known = ", ".join(info.name for info in hosted)
            raise ConfigError(f"the server at {target} hosts no mixer {', '.join(sorted(unknown))}; it has {known}")
        yield [_connect_to(info, target, config, connections) for info in chosen]


def with_port(address: str) -> str:
    """Add the default port to a bare name or number of a host."""
    is_bare = not address.startswith("unix:") and ":" not in address.rpartition("]")[2]
    return f"{address}:{DEFAULT_PORT}" if is_bare and address else address


def _list_mixers(server: RemoteMixer, target: str) -> list[pb.MixerInfo]:
    try:
        hosted = server.list_mixers()
    except MixerBroken as error:
        raise ConfigError(f"what listens at {target} is no mixer server ({error})") from error
    if not hosted:
        raise ConfigError(f"the server at {target} hosts no mixer; load one first")
    return hosted


def _connect_to(info: pb.MixerInfo, target: str, config: ClientConfig, connections: ExitStack) -> LearnedMixer:
    mixer = connections.enter_context(connect(target, mixer=info.name, version=info.version, config=config))
    return LearnedMixer(title=f"{info.name} {info.version}", image_size=info.image_size, mixer=mixer)
