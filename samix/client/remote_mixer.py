"""A mixer on a server that is used like one in this process.

Pixels go up, mask logits come down, and the caller's own exact pixels are blended on the caller's device.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self, Unpack

import numpy as np
from google.protobuf.message import Message
from torch import Tensor

from samix import wire
from samix.client.config import ClientConfig, Exchange, ImageFormat, Priority
from samix.client.datasets.listing import ListingRoute
from samix.client.datasets.subscription import SubscribeOptions, Subscription, open_subscription
from samix.client.encoding import EncodingThreads
from samix.client.hedging import Hedging
from samix.client.mix_name import MixName, MixNames
from samix.client.pending import PendingMix
from samix.client.pixels import on_host, shrink
from samix.client.replicas import Replicas, Route
from samix.client.retrying import ClientObserver, RetryingCall
from samix.client.timers import Timers
from samix.client.unary import Method
from samix.errors import InputError
from samix.framing import Framed
from samix.mixer.v1 import dataset_pb2
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.batch import MixedBatch, MixPlan, check_images, check_labels
from samix.mixing.plan import SAMIX_ALPHA, draw_plan, generator_for, resolve_plan

log = logging.getLogger(__name__)

_IMAGE_DTYPES: dict[ImageFormat, np.dtype] = {"uint8": np.dtype(np.uint8), "float16": np.dtype("<f2")}
_PRIORITIES: dict[Priority, int] = {"low": pb.PRIORITY_LOW, "normal": pb.PRIORITY_NORMAL, "high": pb.PRIORITY_HIGH}


class RemoteMixer:
    """A mixer on a server, behind the `Mixer` protocol; `connect` makes it. Safe for threads."""

    def __init__(
        self,
        replicas: Replicas,
        *,
        mixer: str,
        version: str,
        exchange: Exchange,
        config: ClientConfig,
        observer: ClientObserver,
    ) -> None:
        self._replicas = replicas
        self._mixer = mixer
        self._version = version
        self._exchange = exchange
        self._config = config
        self._observer = observer
        self._versions_seen: set[str] = set()
        self._encoding_threads = EncodingThreads()
        self._names = MixNames(replicas.target)
        self._timers = Timers()
        self._hedging = Hedging(config.hedge) if config.hedge and replicas.has_several else None

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
        _check(images, labels)
        generator = None if seed is None else generator_for(seed)
        plan = resolve_plan(len(images), lam=lam, partner=partner, generator=generator)
        return self._submit(images, labels, plan, self._exchange).result()

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

    def submit(
        self, images: Tensor, labels: Tensor | None = None, *, plan: MixPlan, exchange: Exchange | None = None
    ) -> PendingMix:
        """Send one batch at once; its deadline runs from here. The tensors must not change before `result`.

        Args:
            images: see `Mixer.mix`.
            labels: see `Mixer.mix`.
            plan: what to mix with what.
            exchange: what goes up and comes back this time; None is what `connect` was told.

        Raises:
            BadBatch: if images, labels or plan are of a wrong rank, size or dtype.
            InputError: if this mixer was used before this process was forked.
        """
        _check(images, labels)
        plan = resolve_plan(len(images), lam=plan.lam, partner=plan.partner, generator=None)
        return self._submit(images, labels, plan, exchange or self._exchange)

    def info(self) -> pb.MixerInfo:
        """Ask the server about this mixer.

        Raises:
            MixerError: if the server has no such mixer or does not answer.
        """
        return self._start("GetMixer", pb.GetMixerRequest(name=self._mixer)).result().message.mixer

    def list_mixers(self) -> list[pb.MixerInfo]:
        """Ask the server for all its mixers, by name.

        Raises:
            MixerError: if the server does not answer.
        """
        return list(self._start("ListMixers", pb.ListMixersRequest()).result().message.mixers)

    def wait_ready(self, timeout_s: float) -> pb.MixerInfo:
        """Wait until the server answers for this mixer, which may start after its clients.

        Raises:
            MixerNotFound: if the server is there without this mixer.
            MixerUnavailable, MixerTimeout: if it does not answer within `timeout_s`.
        """
        patient = replace(self._config, deadline_s=timeout_s, retry=replace(self._config.retry, attempts=None))
        return self._start("GetMixer", pb.GetMixerRequest(name=self._mixer), patient).result().message.mixer

    def list_datasets(self) -> list[dataset_pb2.DatasetInfo]:
        """Ask the server which datasets it reads, by name; see `list_mixers`."""
        call = self._call()
        call.start(ListingRoute(self._replicas), ListingRoute.num_bytes)
        return list(call.result().message.datasets)

    def subscribe(self, dataset: str, *, mix: bool = True, **options: Unpack[SubscribeOptions]) -> Subscription:
        """Stream ready batches of a dataset that the server reads, for who has no data here; see `Subscription`.

        Args:
            dataset: its name on the server.
            mix: by the mixer that `connect` was told; False leaves the pictures as they are.
            options: `batch_size` and `image_size`, and what else `SubscribeOptions` has.

        Raises:
            InputError: if an option cannot be, or batches are to be mixed by no mixer in particular.
        """
        mixer = (self._mixer, self._version) if mix else None
        return open_subscription(self._replicas, dataset, mixer, options, self._config, self._observer)

    def close(self) -> None:
        """End the connections; mixes under way end as cancelled. May be called twice, and from any thread."""
        self._replicas.close()
        self._timers.close(call_back=True)  # what waits to be sent again finds the connections closed
        self._encoding_threads.close()

    def note_version(self, version: str) -> None:
        """Log the first answer of other weights than before: legitimate after a reload, and good to know."""
        if self._versions_seen and version not in self._versions_seen:
            log.warning("mixer_version_changed target=%s version=%s", self._replicas.target, version)
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

    def _submit(self, images: Tensor, labels: Tensor | None, plan: MixPlan, exchange: Exchange) -> PendingMix:
        name = self._names.next(self._mixer, len(images))
        # A GPU makes the copies itself, before its bytes cross to the host.
        source = shrink(images, exchange.encoder_size) if images.is_cuda else images
        call = wire.MixCall(
            mixer=self._mixer,
            version=self._version,
            pixels=on_host(source).numpy(),
            lam=plan.lam.numpy(),
            partner=plan.partner.numpy(),
            wants_images=exchange.reply == "images",
            image_dtype=_IMAGE_DTYPES[exchange.image_format],
            priority=_PRIORITIES[exchange.priority],
        )
        pending = PendingMix(
            answer=self._call(hedging=self._hedging, name=name),
            name=name,
            call=call,
            exchange=exchange,
            images=images,
            labels=labels,
            plan=plan,
            note_version=self.note_version,
        )
        if exchange.changes_pixels:
            self._replicas.check_process()  # a fork has no encoding threads
            self._encoding_threads.run(partial(pending.send, self._replicas), pending.fail)
        else:
            pending.send(self._replicas)
        return pending

    def _call(
        self, config: ClientConfig | None = None, hedging: Hedging | None = None, name: MixName | None = None
    ) -> RetryingCall:
        return RetryingCall(
            target=self._replicas.target,
            config=config or self._config,
            observer=self._observer,
            timers=self._timers,
            hedging=hedging,
            span=None if name is None else name.span,
        )

    def _start(self, method: Method, request: Message, config: ClientConfig | None = None) -> RetryingCall:
        call = self._call(config)
        framed = Framed(request)
        call.start(Route(self._replicas, method, framed), framed.num_bytes)
        return call


def _check(images: Tensor, labels: Tensor | None) -> None:
    check_images(images)
    check_labels(labels, len(images))
