"""How a client waits, retries and connects, and what travels."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from samix.credentials import Credentials
from samix.errors import ConfigError

Reply = Literal["masks", "images"]
Encoding = Literal["raw", "jpeg"]
ImageFormat = Literal["uint8", "float16"]
Priority = Literal["low", "normal", "high"]


_CHOICES: dict[str, tuple[str, ...]] = {
    "reply": get_args(Reply),
    "encoding": get_args(Encoding),
    "image_format": get_args(ImageFormat),
    "priority": get_args(Priority),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """What goes up and what comes back."""

    reply: Reply = "masks"
    """`masks` blends the images given to `mix`; `images` takes mixed images from the server."""
    encoding: Encoding = "raw"
    """`raw` sends the exact pixels. `jpeg` sends a tenth of the bytes, for thin links: masks are then those of slightly
    different pictures, while the exact pixels are blended."""
    jpeg_quality: int = 90
    """Of JPEGs, 1 to 100."""
    encoder_size: int | None = None
    """Longer side of the copies that go up, in pixels; smaller images go as they are, and None sends all of them so.
    The masks are those of the copies, grown to the size of the images, and the exact pixels are blended."""
    image_format: ImageFormat = "uint8"
    """Of reply `images`: `float16` has finer steps, for twice the bytes."""
    priority: Priority = "normal"
    """Which of the requests that wait on a server go first; all clients of one priority get equal shares."""

    def __post_init__(self) -> None:
        for name, kinds in _CHOICES.items():
            if getattr(self, name) not in kinds:
                raise ConfigError(f"{name} must be one of {', '.join(kinds)}, got {getattr(self, name)!r}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"jpeg_quality must lie in 1..100, got {self.jpeg_quality}")
        if self.encoder_size is not None and self.encoder_size < 1:
            raise ConfigError(
                f"encoder_size must be at least 1, got {self.encoder_size}; None sends images as they are"
            )
        if self.reply == "images":
            self._check_pixels()
        elif self.image_format != "uint8":
            raise ConfigError(f"image_format {self.image_format!r} is one of mixed images; take reply 'images' for it")

    def __str__(self) -> str:
        size = "" if self.encoder_size is None else f"@{self.encoder_size}"
        return f"{self.encoding}{size}/{self.reply}"

    @property
    def changes_pixels(self) -> bool:
        """Whether other pixels go up than those that are blended, which takes time to make."""
        return self.encoding != "raw" or self.encoder_size is not None

    def _check_pixels(self) -> None:
        if self.encoding != "raw":
            raise ConfigError("reply 'images' would mix decoded JPEGs instead of the exact pixels; take encoding 'raw'")
        if self.encoder_size is not None:
            raise ConfigError(
                f"reply 'images' would mix copies of {self.encoder_size} pixels instead of the exact ones; "
                "leave encoder_size out"
            )


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
class HedgePolicy:
    """When a mix that waits for one replica is sent to a second one as well: the first answer is taken."""

    quantile: float = 0.95
    """It has waited longer than this share of the latest mixes took; in (0, 1)."""
    min_delay_s: float = 0.02
    """But at least so long, in seconds: replicas that answer at once differ by chance."""
    max_share: float = 0.05
    """Most of the mixes that are sent twice, in (0, 1]: where all replicas are slow, twice the work would not help."""

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ConfigError(f"hedge.quantile must lie between 0 and 1, got {self.quantile}")
        if not self.min_delay_s >= 0:
            raise ConfigError(f"hedge.min_delay_s must be at least 0, got {self.min_delay_s}")
        if not 0 < self.max_share <= 1:
            raise ConfigError(
                f"hedge.max_share must lie in (0, 1], got {self.max_share}; to send nothing twice, hedge=None"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamPolicy:
    """How mixes share calls: several under way on one stream, in chunks; a server without streams gets plain calls."""

    max_batches: int = 256
    """Most batches of one stream; the next one is opened anew, and may reach another address of a name. The server may
    set a lower limit. 0 uses no streams: every mix is a call of its own."""
    idle_s: float = 2.0
    """A stream that has nothing under way for so long is closed, in seconds: an open one holds threads."""

    def __post_init__(self) -> None:
        if self.max_batches < 0:
            raise ConfigError(f"streams.max_batches must be >= 0, got {self.max_batches}; 0 uses no streams")
        if not self.idle_s > 0:
            raise ConfigError(f"streams.idle_s must be positive, got {self.idle_s}")


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
    shared_memory_mib: int = 0
    """Memory to lease from each server behind a `unix:///` target, in MiB, through which exact pixels then travel; 0
    leases none. The server has to lend some (`--shared-memory-mib`), else they travel as bytes, and the log says so."""
    name: str = ""
    """How the client names itself to servers, which give all names equal shares; empty takes host and process."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    """When a request is sent again."""
    hedge: HedgePolicy | None = field(default_factory=HedgePolicy)
    """When a mix is sent to a second replica before the first has answered; None never does. Of no effect unless
    several replicas are named."""
    streams: StreamPolicy = field(default_factory=StreamPolicy)
    """How mixes share calls."""
    credentials: Credentials = field(default_factory=Credentials)
    """What servers are shown, and who is believed; what is empty the environment fills (SAMIX_TLS_CA and others)."""

    def __post_init__(self) -> None:
        for name in ("deadline_s", "max_message_bytes", "keepalive_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.shared_memory_mib < 0:
            raise ConfigError(f"shared_memory_mib must be >= 0, got {self.shared_memory_mib}; 0 leases none")
        if not (self.name.isascii() and (self.name.isprintable() or not self.name) and len(self.name) <= 64):
            raise ConfigError(f"name must be at most 64 printable ASCII characters, got {self.name!r}")
