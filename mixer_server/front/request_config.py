"""What clients may ask for, and how long they may take."""

from dataclasses import dataclass

from mixer_server.limits import check_seconds
from samix.errors import ConfigError

_GRPC_MAX_MIB = 2047  # its sizes are signed 32-bit numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestConfig:
    """What a single request or stream may ask for."""

    max_images: int = 256
    """Most images in one request; at most batching.max-queue-images."""
    max_message_mib: int = 64
    """Largest message that is read, and most pixels of one request, in MiB: 256 images of 224 pixels are 37. gRPC reads
    2047 at most."""
    max_upload_s: float = 30.0
    """Longest a call may take to send its message or to take its answer, or a stream to send one batch or to take one
    chunk, in seconds; it is cancelled then."""
    max_wait_s: float = 60.0
    """Longest a request waits for its answer, in seconds, whatever deadline its caller has set."""
    max_in_flight: int = 64
    """Most calls of one method at once, from their headers to their answer; further ones are refused with a hint when
    to come again."""
    max_streams: int = 256
    """Most streams at once; each holds two threads. Further ones are refused with a hint when to come again."""
    max_streams_per_client: int = 128
    """Most of them from one address, so that none has them all; unix sockets count for themselves. A trainer holds one
    for each of its ranks, and for moments two."""
    stream_credits: int = 8
    """Most batches that one stream has sent and not got answered."""
    max_stream_batches: int = 256
    """Most batches of one stream; its client then opens another, so that load spreads over replicas."""
    stream_idle_s: float = 30.0
    """A stream that sends nothing for so long is ended, in seconds."""

    def __post_init__(self) -> None:
        counts = ("max_images", "max_message_mib", "max_in_flight", "max_streams", "stream_credits")
        for name in (*counts, "max_streams_per_client", "max_stream_batches"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"requests.{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        if self.max_message_mib > _GRPC_MAX_MIB:
            raise ConfigError(
                f"requests.max-message-mib must be at most {_GRPC_MAX_MIB}, all that gRPC can read, "
                f"got {self.max_message_mib}"
            )
        for name in ("max_upload_s", "max_wait_s", "stream_idle_s"):
            check_seconds(f"requests.{name.replace('_', '-')}", getattr(self, name))
