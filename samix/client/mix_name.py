"""What a mix is called while it is under way: a key for logs, and a span where somebody traces."""

from typing import NamedTuple

from samix import tracing
from samix.mixer.v1 import mixer_pb2 as pb
from samix.request_keys import RequestKeys
from samix.tracing import Span


class MixName(NamedTuple):
    """Of one mix, however often it is sent. A tuple, since it is made for each batch."""

    key: str
    """In lines of logs, here and on the server."""
    span: Span | None
    """None where nothing is traced."""

    def write(self, request: pb.MixRequest) -> None:
        """Say it to the server."""
        request.key = self.key
        if self.span is not None:
            request.traceparent = self.span.traceparent


class MixNames:
    """Names the mixes of one client. Any thread may ask; pickles as a fresh one."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._keys = RequestKeys()

    def __reduce__(self) -> tuple:
        return MixNames, (self._target,)

    def next(self, mixer: str, num_images: int) -> MixName:
        """Name a mix, whose span begins now."""
        key = self._keys.next()
        tracer = tracing.installed()
        if tracer is None:
            return MixName(key, None)
        attributes = {"samix.request": key, "samix.mixer": mixer, "samix.images": num_images}
        return MixName(key, tracer.start("mix", "client", {**attributes, "server.address": self._target}))
