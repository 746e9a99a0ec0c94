"""The caller's end of a subscription: an iterator over ready batches, which knows its place."""

import math
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from samix.client.config import ClientConfig
from samix.client.datasets.batch import ReadyBatch
from samix.client.datasets.cursor import Cursor, Place, cursor_message, new_token
from samix.client.datasets.feed import Feed, Patience
from samix.client.datasets.share import Share, ShareOptions
from samix.client.replicas import Replicas
from samix.client.retrying import ClientObserver
from samix.errors import ConfigError, InputError

DEPTH = 4
"""Batches ahead, unless the caller says otherwise."""
TIMEOUT_S = 60.0
"""Longest wait for a batch unless the caller says otherwise, seconds: a server takes some to start again."""
_MOST_DEPTH = 1024


class SubscribeOptions(ShareOptions, total=False):
    """What a caller may say by name: what is in a `Share`, where it begins, and how far ahead it is read."""

    cursor: Mapping[str, Any] | None
    """`batch.cursor` of an earlier subscription, to go on after that batch; None starts the epoch."""
    depth: int
    """Batches that are on their way, or wait here, while the caller works; 4 unless said."""
    timeout_s: float
    """Longest wait for one batch, lost connections included, in seconds; 60 unless said."""


class Subscription:
    """One epoch of one consumer's batches, in order; `RemoteMixer.subscribe` makes it.

    Iterate once, from one thread at a time; `close` may be called from any. A lost connection, a server that is killed,
    restarted or drained, and a pause longer than the server's lease cost time, but no batch, and none comes twice. What
    cannot be mended is raised: by `__next__`, and again by the next one.
    """

    def __init__(
        self, replicas: Replicas, share: Share, place: Place, patience: Patience, observer: ClientObserver
    ) -> None:
        self._replicas = replicas
        self._share = share
        self._place = place
        self._patience = patience
        self._observer = observer
        self._feed: Feed | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ReadyBatch:
        """Return the next batch; see the errors of `Feed.take`."""
        batch = self._open().take()
        if batch is None:
            raise StopIteration
        self._place = Place(epoch=self._place.epoch, token=self._place.token, cursor=batch.cursor)
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def cursor(self) -> Cursor | None:
        """The place after the last batch that was handed out; None before the first."""
        return self._place.cursor

    def num_batches(self) -> int:
        """Ask how many batches this consumer has in the whole epoch; connects, if nothing did before.

        Raises:
            MixerError, InputError: as iterating does.
        """
        return self._open().terms().num_batches

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch that was handed out, as plain values: fit for JSON and torch.save."""
        return self._place.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, in this process or in another one.

        Raises:
            InputError: if it is no state, or of another epoch, or this subscription has begun.
        """
        if self._feed is not None:
            raise InputError("this subscription has begun; load the state before the first batch, or subscribe again")
        place = Place.of_state(state)
        if place.epoch != self._share.epoch:
            raise InputError(
                f"the state is of epoch {place.epoch}, the subscription of {self._share.epoch}; "
                f"subscribe(..., epoch={place.epoch})"
            )
        self._place = place

    def close(self) -> None:
        """Leave the server. The place stays; may be called twice, and from any thread."""
        self._open().close()

    def _open(self) -> Feed:
        if self._feed is None:
            self._feed = Feed(self._replicas, self._share, self._place, self._patience, self._observer)
            # Who forgets to close it must not leave a thread behind that receives for nobody.
            weakref.finalize(self, self._feed.close, waits=False)
        return self._feed


def open_subscription(
    replicas: Replicas,
    dataset: str,
    mixer: tuple[str, str] | None,
    options: SubscribeOptions,
    config: ClientConfig,
    observer: ClientObserver,
) -> Subscription:
    """Make a subscription; nothing is sent before its first batch is asked for.

    Args:
        replicas: whom to ask, by turns.
        dataset: its name.
        mixer: name and version; None leaves the pictures unmixed.
        options: what the caller said.
        config: pauses between connections.
        observer: told of new connections.

    Raises:
        InputError: if an option cannot be.
    """
    wanted: dict[str, Any] = dict(options)
    depth, timeout_s, cursor = (
        wanted.pop("depth", DEPTH),
        wanted.pop("timeout_s", TIMEOUT_S),
        wanted.pop("cursor", None),
    )
    if not isinstance(depth, int) or not 1 <= depth <= _MOST_DEPTH:
        raise ConfigError(f"depth must lie in 1..{_MOST_DEPTH}, got {depth!r}")
    if not 0 < timeout_s < math.inf:
        raise ConfigError(f"timeout_s must be positive and finite, got {timeout_s}")
    if cursor is not None:
        cursor_message(cursor)
        cursor = dict(cursor)
    name, version = (None, "") if mixer is None else mixer
    share = Share(dataset=dataset, mixer=name, version=version, **wanted)
    place = Place(epoch=share.epoch, token=new_token(), cursor=cursor)
    return Subscription(
        replicas, share, place, Patience(depth=depth, timeout_s=timeout_s, retry=config.retry), observer
    )
