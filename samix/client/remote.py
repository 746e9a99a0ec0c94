"""The remote engine: a mixer on a server that is used like one in this process.

Pixels go up, mask logits come down, and the caller's own exact pixels are blended on the caller's device.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Literal, Self, get_args

import torch
from google.protobuf.message import Message
from torch import Tensor

from samix import wire
from samix.client.channel import Connection, Method, check_target
from samix.client.config import ClientConfig
from samix.client.retrying import ClientObserver, RetryingCall, SilentObserver
from samix.errors import InputError
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.batch import MixedBatch, MixPlan, as_unit_float, check_images, check_labels
from samix.mixing.plan import SAMIX_ALPHA, draw_plan, generator_for, resolve_plan
from samix.mixing.render import compose

log = logging.getLogger(__name__)

Reply = Literal["masks", "images"]

_DEFAULT_CONFIG = ClientConfig()
_SILENT = SilentObserver()


def connect(
    target: str,
    *,
    mixer: str = "",
    version: str = "",
    reply: Reply = "masks",
    config: ClientConfig = _DEFAULT_CONFIG,
    observer: ClientObserver = _SILENT,
) -> "RemoteMixer":
    """Make a remote mixer. Nothing is sent before it is used, so the server may start later.

    Args:
        target: `host:port`, `dns:///name:port` or `unix:///path`.
        mixer: its name on the server; may be empty where the server hosts exactly one.
        version: weights version to insist on; empty takes the one that is loaded.
        reply: `masks` blends the images given to `mix`; `images` takes mixed uint8 images from the server.
        config: deadlines, limits and retries.
        observer: told of bytes and retries.

    Raises:
        InputError: if `target` is no address, or `reply` no kind of reply.
    """
    if reply not in get_args(Reply):
        raise InputError(f"reply must be one of {', '.join(get_args(Reply))}, got {reply!r}")
    connection = Connection(check_target(target), config)
    return RemoteMixer(connection, mixer=mixer, version=version, reply=reply, config=config, observer=observer)


class RemoteMixer:
    """A mixer on a server, behind the `Mixer` protocol; `connect` makes it. Safe for threads."""

    def __init__(
        self,
        connection: Connection,
        *,
        mixer: str,
        version: str,
        reply: Reply,
        config: ClientConfig,
        observer: ClientObserver,
    ) -> None:
        self._connection = connection
        self._mixer = mixer
        self._version = version
        self._reply = reply
        self._config = config
        self._observer = observer
        self._versions_seen: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def mix(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int | None = None,
        lam: float | Tensor | None = None,
        partner: Tensor | None = None,
    ) -> MixedBatch:
        """Mix one batch and wait for it; see `Mixer.mix`."""
        check_images(images)
        generator = None if seed is None else generator_for(seed)
        plan = resolve_plan(len(images), lam=lam, partner=partner, generator=generator)
        return self.submit(images, labels, plan=plan).result()

    def stream(
        self, batches: Iterable[tuple[Tensor, Tensor | None]], *, seed: int, depth: int = 4
    ) -> Iterator[MixedBatch]:
        """Mix batches in order, `depth` of them under way while the caller works; see `Mixer.stream`.

        Closing the iterator early cancels what is under way.

        Raises:
            InputError: if `depth` is below 1.
            MixerError: while iterating, if a mix failed after its retries; the iterator then ends.
        """
        if depth < 1:
            raise InputError(f"depth must be at least 1, got {depth}")
        return self._stream(batches, seed, depth)

    def submit(self, images: Tensor, labels: Tensor | None = None, *, plan: MixPlan) -> "PendingMix":
        """Send one batch at once; its deadline runs from here. The tensors must not change before `result`.

        Raises:
            BadBatch: if images, labels or plan are of a wrong rank, size or dtype.
            InputError: if this mixer was used before this process was forked.
        """
        check_images(images)
        check_labels(labels, len(images))
        plan = resolve_plan(len(images), lam=plan.lam, partner=plan.partner, generator=None)
        call = wire.MixCall(
            mixer=self._mixer,
            version=self._version,
            pixels=_pixels(images).numpy(),
            lam=plan.lam.numpy(),
            partner=plan.partner.numpy(),
            wants_images=self._reply == "images",
        )
        answer = self._start("Mix", wire.encode_request(call))
        return PendingMix(self, answer, call, images, labels, plan)

    def info(self) -> pb.MixerInfo:
        """Ask the server about this mixer.

        Raises:
            MixerError: if the server has no such mixer or does not answer.
        """
        return self._start("GetMixer", pb.GetMixerRequest(name=self._mixer)).result().mixer

    def list_mixers(self) -> list[pb.MixerInfo]:
        """Ask the server for all its mixers, by name.

        Raises:
            MixerError: if the server does not answer.
        """
        return list(self._start("ListMixers", pb.ListMixersRequest()).result().mixers)

    def wait_ready(self, timeout_s: float) -> pb.MixerInfo:
        """Wait until the server answers for this mixer, which may start after its clients.

        Raises:
            MixerNotFound: if the server is there without this mixer.
            MixerUnavailable, MixerTimeout: if it does not answer within `timeout_s`.
        """
        retry = replace(self._config.retry, attempts=None)
        patient = replace(self._config, deadline_s=timeout_s, retry=retry)
        return self._start("GetMixer", pb.GetMixerRequest(name=self._mixer), patient).result().mixer

    def close(self) -> None:
        """End the connection; mixes under way end as cancelled."""
        self._connection.close()

    def note_version(self, version: str) -> None:
        """Log the first answer of other weights than before: legitimate after a reload, and good to know."""
        if self._versions_seen and version not in self._versions_seen:
            log.warning("mixer_version_changed target=%s version=%s", self._connection.target, version)
        self._versions_seen.add(version)

    def _stream(self, batches: Iterable[tuple[Tensor, Tensor | None]], seed: int, depth: int) -> Iterator[MixedBatch]:
        pending: deque[PendingMix] = deque()
        try:
            for index, (images, labels) in enumerate(batches):
                # The next batch leaves before this one is handed out, so that `depth` are under way during a step.
                mixed = pending.popleft().result() if len(pending) == depth else None
                plan = draw_plan(len(images), alpha=SAMIX_ALPHA, generator=generator_for(seed, index))
                pending.append(self.submit(images, labels, plan=plan))
                if mixed is not None:
                    yield mixed
            while pending:
                yield pending.popleft().result()
        finally:
            for mix in pending:
                mix.cancel()

    def _start(self, method: Method, request: Message, config: ClientConfig | None = None) -> RetryingCall:
        call = RetryingCall(
            lambda timeout_s: self._connection.start(method, request, timeout_s),
            num_bytes=request.ByteSize(),
            target=self._connection.target,
            config=config or self._config,
            observer=self._observer,
        )
        call.start()
        return call


class PendingMix:
    """A mix that was sent; `result` collects it."""

    def __init__(
        self,
        mixer: RemoteMixer,
        answer: RetryingCall,
        call: wire.MixCall,
        images: Tensor,
        labels: Tensor | None,
        plan: MixPlan,
    ) -> None:
        self._mixer = mixer
        self._answer = answer
        self._call = call
        self._images = images
        self._labels = labels
        self._plan = plan

    def result(self, device: torch.device | None = None) -> MixedBatch:
        """Wait for the answer, at most until the deadline, and mix.

        Args:
            device: where to mix and leave the batch; None stays where the images are.

        Raises:
            MixerError: what went wrong, after retries.
        """
        reply = wire.decode_response(self._answer.result(), self._call)
        self._mixer.note_version(reply.version)
        images, labels = self._images, self._labels
        if device is not None:
            images = images.to(device, non_blocking=True)
            labels = None if labels is None else labels.to(device, non_blocking=True)
        # Copies: torch warns of tensors over read-only memory.
        logits = torch.from_numpy(reply.mask_logits.copy())
        mixed = compose(images, labels, self._plan, logits, reply.rendering)
        if reply.images is None:
            return mixed
        return replace(mixed, images=as_unit_float(torch.from_numpy(reply.images.copy()).to(images.device)))

    def cancel(self) -> None:
        """Give up the mix; `result` then raises MixerCancelled unless the answer was faster."""
        self._answer.cancel()


def _pixels(images: Tensor) -> Tensor:
    """Bring images to what travels: uint8 as it is, any float as float32, on the host."""
    images = images.detach().cpu()
    return images if images.dtype == torch.uint8 else as_unit_float(images)
