"""All co-training sessions of a server: found by name and token, bounded in number and memory, reaped when idle."""

import logging
import threading
from dataclasses import dataclass

import torch

from mixer_server.online.checkpoints import Checkpoints, SessionRecord
from mixer_server.online.config import OnlineServiceConfig
from mixer_server.online.footprint import check_and_measure
from mixer_server.online.keys import NAME, check_key, hash_token
from mixer_server.online.learner import Learner
from mixer_server.online.metrics import SessionMetrics
from mixer_server.online.session import Session, SessionParts
from mixer_server.scheduling.batcher import SHUTTING_DOWN
from mixer_server.scheduling.budget import MemoryBudget, Reservation
from samix.cotraining.settings import SessionSettings
from samix.errors import (
    BadBatch,
    ConfigError,
    MixerCancelled,
    MixerError,
    MixerNotFound,
    MixerOverloaded,
    MixerUnavailable,
    NotTheOwner,
    WrongState,
)
from samix.mixer.v1 import online_pb2 as pb
from samix.mixing.artefact import save_artefact
from samix.mixing.frozen import FrozenMixer

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 10.0
"""When to come again for a place in memory."""
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A mixer on disk."""

    mixer: FrozenMixer
    step: int
    file: str
    """Name of its file in the folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    session: Session
    room: Reservation


class Sessions:
    """The sessions of a server. `start`, then `drain`, then `close`. Safe for threads."""

    def __init__(self, config: OnlineServiceConfig, metrics: SessionMetrics, device: torch.device) -> None:
        self.config = config
        self.metrics = metrics
        self._device = device
        self._checkpoints = Checkpoints(config.folder)
        self._budget = MemoryBudget(config.memory_mib * _MIB, lambda: _RETRY_AFTER_S)
        self._parts = SessionParts(config=config, checkpoints=self._checkpoints, metrics=metrics, turn=threading.Lock())
        self._opening = threading.Lock()  # one is built, read or ended at a time
        self._held: dict[str, _Held] = {}
        self._is_draining = threading.Event()
        self._reaper = threading.Thread(target=self._reap, name="session-reaper", daemon=True)
        metrics.memory.set_function(lambda: self._budget.num_bytes)

    def start(self) -> None:
        """Look for idle sessions from now on."""
        self._reaper.start()

    def open(self, key: pb.SessionKey, settings: SessionSettings, step: int) -> tuple[Session, int, bool]:
        """Begin a session, or go on with it.

        Returns:
            The session, the step at which it was found, and whether it is new.

        Raises:
            MixerError: if it cannot be, or belongs to somebody else.
        """
        self._check_open()
        check_key(key)
        self._check_settings(settings, step)
        with self._opening:
            session = self._find(key)
            if session is not None:
                session.check_same(settings)
                self._held[key.session].room.resize(self._measure(settings))  # of more ranks, perhaps
                return session, session.reopen(settings, step), False
            record = SessionRecord(
                name=key.session, token_sha256=hash_token(key.token), settings=settings, step=step, weights_step=None
            )
            return self._begin(record), step, True

    def get(self, key: pb.SessionKey) -> Session:
        """Find a session that is open, or whose checkpoint is here.

        Raises:
            MixerNotFound: if there is none.
            NotTheOwner: if the token is another.
            MixerError: if it has no room here now.
        """
        self._check_open()
        check_key(key)
        held = self._held.get(key.session)
        if held is not None and not held.session.is_broken:
            held.session.check_token(key.token)
            return held.session
        with self._opening:
            session = self._find(key)
        if session is None:
            raise MixerNotFound(f"no session is called {key.session}; open it first")
        return session

    def export(self, session: Session, name: str) -> Exported:
        """Write the mixer of a session as an artefact into the folder.

        Raises:
            MixerError: if there is none yet.
        """
        name = name or session.name
        if not NAME.fullmatch(name):
            raise BadBatch(
                f"a mixer's name has up to 64 letters, digits, dots, dashes, got {name[:80]!r}", field="name"
            )
        mixer, step = session.export(name)
        self.config.folder.mkdir(parents=True, exist_ok=True)
        file = f"{session.name}.safetensors"
        provenance = {"recipe": session.settings.recipe, "session": session.name, "steps": str(step)}
        save_artefact(self.config.folder / file, mixer, provenance)
        log.info("session_exported", extra={"session": session.name, "mixer": mixer.name, "version": mixer.version})
        return Exported(mixer=mixer, step=step, file=file)

    def end(self, session: Session, name: str) -> Exported:
        """End a session: export its mixer, delete its checkpoint.

        Raises:
            WrongState: if there is no mixer yet; the session is over all the same.
            MixerError: if the export fails otherwise; the session is still there, and so is what it learned.
        """
        try:
            exported = self.export(session, name)
        except WrongState:
            self._forget(session)
            raise
        self._forget(session)
        return exported

    def drain(self) -> None:
        """Write all sessions and let them go; their trainers come back, here or to who has the folder then."""
        self._is_draining.set()
        for held in list(self._held.values()):
            self._remove(held.session, MixerUnavailable(SHUTTING_DOWN), saves=True)

    def close(self) -> None:
        """End what is left."""
        self.drain()
        if self._reaper.ident is not None:
            self._reaper.join()

    @property
    def num_sessions(self) -> int:
        """Sessions in memory."""
        return len(self._held)

    def reap_idle(self) -> None:
        """Write those that nobody uses, and let them go."""
        for held in list(self._held.values()):
            if held.session.idle_s >= self.config.idle_s:
                log.info("session_idle", extra={"session": held.session.name, "idle_s": self.config.idle_s})
                reason = MixerUnavailable(f"session {held.session.name} was idle and left memory; come again")
                self._remove(held.session, reason, saves=True)
                self.metrics.reaped.inc()

    def _forget(self, session: Session) -> None:
        self._remove(session, MixerCancelled(f"session {session.name} was closed"), saves=False)
        self._checkpoints.delete(session.name)

    def _check_settings(self, settings: SessionSettings, step: int) -> None:
        total = settings.length.total_steps
        if step > total:
            raise BadBatch(f"step must be at most {total}, the run's end, got {step}", field="step")
        if settings.world_size > self.config.max_ranks:
            raise BadBatch(
                f"a session of {settings.world_size} ranks never has them all on a server that takes "
                f"{self.config.max_ranks}; raise its --online.max-ranks",
                field="settings.world_size",
            )

    def _check_open(self) -> None:
        if not self.config.is_enabled:
            raise WrongState("this server trains no mixers; start it with --online.memory-mib 2048")
        if self._is_draining.is_set():
            raise MixerUnavailable(SHUTTING_DOWN)

    def _find(self, key: pb.SessionKey) -> Session | None:
        """Find a session in memory or on disk; under the lock."""
        held = self._held.get(key.session)
        if held is not None:
            held.session.check_token(key.token)
            if not held.session.is_broken:
                return held.session
            self._let_go(held, MixerUnavailable(f"session {key.session} failed; its last checkpoint is taken"))
        record = self._checkpoints.read_record(key.session)
        if record is None:
            return None
        if hash_token(key.token) != record.token_sha256:  # both are hashes: how far they agree tells nothing
            raise NotTheOwner(f"the token is not that of session {key.session}; use the one that began it")
        return self._begin(record, is_restored=True)

    def _begin(self, record: SessionRecord, *, is_restored: bool = False) -> Session:
        if len(self._held) >= self.config.max_sessions:
            raise MixerOverloaded(f"{self.config.max_sessions} sessions are open, no more are taken", _RETRY_AFTER_S)
        room = self._budget.reserve(self._measure(record.settings))
        try:
            session = self._build(record, is_restored=is_restored)
        except BaseException:
            room.release()
            raise
        self._held[record.name] = _Held(session=session, room=room)
        session.start()
        if is_restored:
            self.metrics.restored.inc()
        fields = {"session": record.name, "step": record.step, "mib": room.num_bytes >> 20, "restored": is_restored}
        log.info("session_opened", extra=fields | {"ranks": record.settings.world_size})
        return session

    def _measure(self, settings: SessionSettings) -> int:
        needed = check_and_measure(settings)
        if needed > self._budget.max_bytes:
            raise MixerOverloaded(
                f"the session needs {needed // _MIB} MiB, this server has {self._budget.max_bytes // _MIB} for "
                "co-training; take smaller batches or a smaller network, or raise its --online.memory-mib",
                float("inf"),
            )
        return needed

    def _build(self, record: SessionRecord, *, is_restored: bool) -> Session:
        with self._parts.turn:  # what is drawn comes from torch's global generator
            try:
                learner = Learner.build(record.settings, self._device)
                if is_restored:
                    learner.load_tensors(self._checkpoints.read_tensors(record.name))
            except ConfigError as error:
                raise BadBatch(f"the session's settings cannot be used: {error}", field="settings") from error
            except (RuntimeError, ValueError, KeyError) as error:
                raise WrongState(
                    f"the checkpoint of session {record.name} does not fit its settings; begin one of another name"
                ) from error
        return Session(record, learner, self._parts, is_restored=is_restored)

    def _remove(self, session: Session, reason: MixerError, *, saves: bool) -> None:
        with self._opening:
            held = self._held.get(session.name)
            if held is None or held.session is not session:
                return
            self._let_go(held, reason, saves=saves)

    def _let_go(self, held: _Held, reason: MixerError, *, saves: bool = False) -> None:
        held.session.stop(reason, saves=saves)
        del self._held[held.session.name]
        held.room.release()

    def _reap(self) -> None:
        while not self._is_draining.wait(min(self.config.idle_s / 8, 60.0)):
            try:
                self.reap_idle()
            except Exception:  # the edge of this thread
                log.exception("reaping_failed")


def online_device(kind: str) -> torch.device:
    """Say where mixers learn, as --device says: on the first GPU, where there is one and it may be used."""
    has_gpu = kind != "cpu" and torch.cuda.is_available()
    return torch.device("cuda:0" if has_gpu else "cpu")
