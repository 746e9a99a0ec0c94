"""How a client waits, retries and connects, and what travels."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from samix.errors import ConfigError

Reply = Literal["masks", "images"]
Encoding = Literal["raw", "jpeg"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """What goes up and what comes back."""

    reply: Reply = "masks"
    """`masks` blends the images given to `mix`; `images` takes mixed uint8 images from the server."""
    encoding: Encoding = "raw"
    """`raw` sends the exact pixels. `jpeg` sends a tenth of the bytes, for thin links: masks are then those of slightly
    different pictures, while the exact pixels are blended."""
    jpeg_quality: int = 90
    """Of JPEGs, 1 to 100."""

    def __post_init__(self) -> None:
        for name, kinds in (("reply", get_args(Reply)), ("encoding", get_args(Encoding))):
            if getattr(self, name) not in kinds:
                raise ConfigError(f"{name} must be one of {', '.join(kinds)}, got {getattr(self, name)!r}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"jpeg_quality must lie in 1..100, got {self.jpeg_quality}")
        if (self.reply, self.encoding) == ("images", "jpeg"):
            raise ConfigError("reply 'images' would mix decoded JPEGs instead of the exact pixels; take encoding 'raw'")

    def __str__(self) -> str:
        return f"{self.encoding}/{self.reply}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """When a request is sent again: after UNAVAILABLE, an overload that comes with RetryInfo, and a replica's timeout.

    The deadline of the mix ends all retries. An overloaded server says itself when to come back, so only the deadline
    limits those.
    """

    attempts: int | None = 4
    """Most times a request is sent to servers that are unavailable or silent, the first time included; None sets no
    limit."""
    initial_backoff_s: float = 0.1
    """Pause before the second attempt, in seconds. Up to a fifth is added at random, so that ranks do not march."""
    factor: float = 2.0
    """Growth of the pause from one attempt to the next."""
    max_backoff_s: float = 1.0
    """Longest pause, in seconds, unless the server asks for a longer one."""

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise ConfigError(f"attempts must be at least 1, got {self.attempts}; 1 never retries")
        if not (0 < self.initial_backoff_s <= self.max_backoff_s and self.factor >= 1):
            raise ConfigError(
                "backoff must start above 0 s, grow by a factor of at least 1 and end no lower, "
                f"got {self.initial_backoff_s} s, {self.factor} and {self.max_backoff_s} s"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientConfig:
    """What holds for all calls of one client."""

    deadline_s: float = 5.0
    """Longest a mix may take from sending to the answer, retries included, in seconds. While several replicas are up,
    the one that is asked gets half of what is left; the last one gets all of it."""
    max_message_bytes: int = 64 << 20
    """Largest request or answer, in bytes; 64 images of 224 px are 9.6 MB as uint8, four times that as float32."""
    keepalive_s: float = 30.0
    """While calls are open, a silent server is pinged this often, in seconds, and given up 10 s later."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    """When a request is sent again."""

    def __post_init__(self) -> None:
        for name in ("deadline_s", "max_message_bytes", "keepalive_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
