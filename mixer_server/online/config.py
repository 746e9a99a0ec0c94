"""What can be said about co-training to `samix serve`."""

from dataclasses import dataclass
from pathlib import Path

from mixer_server.limits import check_seconds
from samix.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineServiceConfig:
    """Whether and how mixers are trained here, in sessions that trainers open (policy remote-online)."""

    memory_mib: int = 0
    """Memory for sessions, in MiB, all together: networks, batches and what their passes hold. It is taken out of
    --memory-mib. 0 trains no mixers. ResNet-18 with batches of 100 images of 32 pixels needs about 2000."""
    folder: Path = Path("online")
    """Where checkpoints of sessions and finished mixers are written; made when the first session begins."""
    max_sessions: int = 8
    """Most sessions at once."""
    max_ranks: int = 64
    """Most ranks that are connected at once, of all sessions; each holds two threads."""
    checkpoint_steps: int = 100
    """Steps between two checkpoints of a session; at most so many are lost with the server."""
    rank_wait_s: float = 5.0
    """How long a step waits for a rank that has sent nothing, in seconds; then it is learned without it."""
    idle_s: float = 3600.0
    """A session that nobody uses for so long is written to its checkpoint and leaves memory, in seconds; whoever comes
    back finds it there."""

    def __post_init__(self) -> None:
        for name in ("max_sessions", "max_ranks", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"online.{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.memory_mib < 0:
            raise ConfigError(f"online.memory-mib must be >= 0, got {self.memory_mib}; 0 trains no mixers")
        for name in ("rank_wait_s", "idle_s"):
            check_seconds(f"online.{name.replace('_', '-')}", getattr(self, name))

    @property
    def is_enabled(self) -> bool:
        """Whether mixers are trained here."""
        return self.memory_mib > 0
