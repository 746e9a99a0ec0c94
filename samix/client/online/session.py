"""A co-training session as its owner calls it: begin, look, export, end."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from samix.client.channel import Connection
from samix.cotraining.settings import SessionSettings
from samix.cotraining.wire import SERVICE, read_infos, settings_message
from samix.errors import MixerBroken
from samix.framing import split
from samix.mixer.v1 import online_pb2 as pb
from samix.status import from_rpc_error

MessageT = TypeVar("MessageT", bound=Message)

_MOST_SIGNS = 64
_TOKEN_BYTES = 32
_EXPORT_S = 120.0
"""Longest an export may take, seconds: its session may be in the middle of a pass."""


def permitted_name(text: str) -> str:
    """Turn a text, of a folder perhaps, into a name that sessions and their mixers may have."""
    kept = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "-" for sign in text)
    return kept.lstrip("._-")[:_MOST_SIGNS] or "run"


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionKey:
    """Name and secret of a session."""

    name: str
    """Unique on the server."""
    token: bytes
    """Whoever has it owns the session."""

    @classmethod
    def draw(cls, prefix: str) -> "SessionKey":
        """Draw a key whose name begins with a prefix, as far as names may have its characters."""
        name = f"{permitted_name(prefix)[:48]}-{secrets.token_hex(4)}"
        return cls(name=name, token=secrets.token_bytes(_TOKEN_BYTES))

    def message(self) -> pb.SessionKey:
        """Fill its message."""
        return pb.SessionKey(session=self.name, token=self.token)


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A session that was opened."""

    state: pb.SessionState
    """Where it stands."""
    found_step: int
    """Where it stood before."""
    is_new: bool
    """Whether it has just begun."""
    shapes: Mapping[str, tuple[int, ...]]
    """The weights to send, in this order."""


class OnlineSession:
    """Calls about one session on one server. Safe for threads; the connection is its maker's to close."""

    def __init__(self, connection: Connection, key: SessionKey, settings: SessionSettings) -> None:
        self.connection = connection
        self.key = key
        self.settings = settings

    def open(self, step: int, *, timeout_s: float) -> Opened:
        """Begin the session, or go on with it at a step.

        Raises:
            MixerError: if the server is not there, or does not take it.
        """
        request = pb.OpenSessionRequest(key=self.key.message(), settings=settings_message(self.settings), step=step)
        response = self._ask("OpenSession", request, pb.OpenSessionResponse, timeout_s)
        return Opened(
            state=response.state,
            found_step=response.found_step,
            is_new=response.is_new,
            shapes=read_infos(response.tensors),
        )

    def state(self, *, timeout_s: float) -> pb.SessionState:
        """Ask where it stands.

        Raises:
            MixerError: if the server is not there, or has no such session.
        """
        request = pb.GetSessionRequest(key=self.key.message())
        return self._ask("GetSession", request, pb.GetSessionResponse, timeout_s).state

    def export(self, name: str) -> bytes:
        """Fetch the mixer as it is now: the bytes of a .safetensors file.

        Raises:
            MixerError: if the server is not there, or there is no mixer yet.
        """
        line = self.connection.line()
        request = pb.ExportMixerRequest(key=self.key.message(), name=name).SerializeToString()
        parts: list[memoryview] = []
        num_bytes = 0
        try:
            call = line.channel.unary_stream(f"/{SERVICE}/ExportMixer")(
                request, timeout=_EXPORT_S, metadata=line.metadata
            )
            for data in call:
                framed = split(pb.ExportMixerResponse, data)
                num_bytes = framed.message.mixer.num_bytes or num_bytes
                parts.append(framed.bulk)
        except grpc.RpcError as error:
            raise from_rpc_error(error, line.target) from error
        except DecodeError as error:
            raise MixerBroken(f"mixer at {line.target}: its answer cannot be read ({error})") from error
        content = b"".join(parts)
        if len(content) != num_bytes:
            raise MixerBroken(f"mixer at {line.target}: of {num_bytes} bytes of a mixer {len(content)} came")
        return content

    def close(self, name: str = "", *, timeout_s: float = _EXPORT_S) -> pb.CloseSessionResponse:
        """End the session; the server keeps its mixer as a file.

        Raises:
            MixerError: if the server is not there, or there is no mixer yet.
        """
        request = pb.CloseSessionRequest(key=self.key.message(), name=name)
        return self._ask("CloseSession", request, pb.CloseSessionResponse, timeout_s)

    def _ask(self, method: str, request: Message, reply: type[MessageT], timeout_s: float) -> MessageT:
        line = self.connection.line()
        try:
            call = line.channel.unary_unary(f"/{SERVICE}/{method}")
            return reply.FromString(call(request.SerializeToString(), timeout=timeout_s, metadata=line.metadata))
        except grpc.RpcError as error:
            raise from_rpc_error(error, line.target) from error
        except DecodeError as error:
            raise MixerBroken(f"mixer at {line.target}: its answer cannot be read ({error})") from error
