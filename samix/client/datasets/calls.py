"""One call of Subscribe: the subscription and credits go up, messages come down."""

import threading
from collections.abc import Generator, Iterator

import grpc

from samix.client.unary import Line
from samix.errors import MixerError
from samix.mixer.v1 import dataset_pb2 as pb
from samix.request_keys import KEY_METADATA
from samix.status import from_rpc_error

SERVICE = "/samix.mixer.v1.DatasetService/"


class SubscribeCall:
    """An open call, with credits for so many batches. `messages` is for one thread, all else for any."""

    def __init__(self, line: Line, subscription: pb.Subscription, num_batches: int, key: str) -> None:
        self._line = line
        self._changed = threading.Condition()
        self._first = pb.SubscribeRequest(subscription=subscription, credits=num_batches)
        self._granted = 0
        self._is_over = False
        self._reason: MixerError | None = None
        self._call = line.channel.stream_stream(f"{SERVICE}Subscribe")(
            self._requests(), metadata=(*line.metadata, (KEY_METADATA, key))
        )

    @property
    def target(self) -> str:
        """Whom it goes to."""
        return self._line.target

    def messages(self) -> Generator[bytes, None, None]:
        """Yield what comes down, until the server ends the call well.

        Raises:
            MixerError: if it ends in another way.
        """
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise self._reason or from_rpc_error(error, self.target) from error
        finally:
            self.cancel()

    def grant(self, num_batches: int) -> None:
        """Let the server send so many batches more."""
        with self._changed:
            self._granted += num_batches
            self._changed.notify()

    def cancel(self, reason: MixerError | None = None) -> None:
        """End the call, unless it has ended; `messages` raises `reason` if there is one."""
        with self._changed:
            self._reason = self._reason or reason
            self._is_over = True
            self._changed.notify()
        self._call.cancel()

    def _requests(self) -> Iterator[bytes]:
        """Yield what goes up, on a thread of gRPC's."""
        yield self._first.SerializeToString()
        while num_batches := self._next_credits():
            yield pb.SubscribeRequest(credits=num_batches).SerializeToString()

    def _next_credits(self) -> int:
        """Wait for credits to send, at most until the call is over; 0 then."""
        with self._changed:
            self._changed.wait_for(lambda: self._granted or self._is_over)
            num_batches, self._granted = self._granted, 0
            return 0 if self._is_over else num_batches
