"""How the ranks of a run come to share a session: rank 0 opens it, and tells the others its key."""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from samix.client.channel import Connection
from samix.client.online.session import OnlineSession, Opened, SessionKey
from samix.cotraining.settings import SessionSettings
from samix.errors import (
    ConfigError,
    InputError,
    MixerBroken,
    MixerError,
    MixerOverloaded,
    MixerTimeout,
    MixerUnavailable,
)
from trainer.sessions.keys import read_key, write_key
from trainer.world import World

log = logging.getLogger(__name__)

_PAUSE_S = 0.25
_CLOSE_S = 10.0


class SessionOpener:
    """Opens the session of a run; `close` ends the connection."""

    def __init__(
        self,
        connection: Connection,
        settings: SessionSettings,
        *,
        world: World,
        folder: Path,
        startup_timeout_s: float,
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._world = world
        self._folder = folder
        self._startup_timeout_s = startup_timeout_s

    def open(self, step: int) -> tuple[OnlineSession, Mapping[str, tuple[int, ...]] | None]:
        """Open the session at a step; every rank calls it.

        Returns:
            The session, and on rank 0 the weights to send.

        Raises:
            ConfigError: if there is no server, or it does not take the session.
        """
        key, shapes, problem = None, None, ""
        if self._world.is_main:
            try:
                key = self._choose_key(step)
                shapes = self._open(key, step).shapes
                write_key(self._folder, key)
            except (InputError, MixerError, OSError) as error:
                problem = str(error)
        key, problem = self._world.gather((key, problem))[0]
        if problem:
            raise ConfigError(problem)
        assert key is not None
        return OnlineSession(self._connection, key, self._settings), shapes

    def close(self) -> None:
        """End the connection; the session stays."""
        self._connection.close()

    def _choose_key(self, step: int) -> SessionKey:
        """Take the run's key where it goes on; a run that starts anew ends what an earlier one left."""
        known = read_key(self._folder)
        if known is not None and step > 0:
            return known
        if known is not None:
            with suppress(MixerError):
                OnlineSession(self._connection, known, self._settings).close(timeout_s=_CLOSE_S)
        return SessionKey.draw(self._folder.resolve().name)

    def _open(self, key: SessionKey, step: int) -> Opened:
        """Open it, as soon as the server is there."""
        target, deadline_s = self._connection.target, time.monotonic() + self._startup_timeout_s
        session = OnlineSession(self._connection, key, self._settings)
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                opened = session.open(step, timeout_s=max(left_s, 0.1))
                break
            except (MixerUnavailable, MixerTimeout, MixerOverloaded) as error:
                if left_s <= _PAUSE_S or (isinstance(error, MixerOverloaded) and error.retry_after_s > left_s):
                    raise ConfigError(
                        f"no server at {target} opened a session within {self._startup_timeout_s:g} s ({error}); start "
                        "one with `samix serve --online.memory-mib 2048`, or choose another --mixing.endpoint or "
                        "--mixing.policy"
                    ) from error
                time.sleep(_PAUSE_S)
            except MixerBroken as error:
                raise ConfigError(f"what listens at {target} trains no mixers ({error})") from error
        fields = {"endpoint": target, "session": key.name, "new": opened.is_new, "found_step": opened.found_step}
        log.info("session_opened", extra=fields)
        return opened
