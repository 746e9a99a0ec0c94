"""Ask a server whether it serves, for the health checks of containers: `samix health localhost:8001`.

Torch is not imported: a check that runs every few seconds must not cost more than what it checks.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

# On the wire HealthCheckRequest is a string in field 1, and HealthCheckResponse an enumeration in field 1: these two
# messages. The package with their own names is not part of a client's installation.
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from samix.credential_flags import add_credential_flags, credentials_of
from samix.credentials import Credentials, open_channel
from samix.errors import ConfigError
from samix.handshakes import connection_hint, trust_problem
from samix.targets import is_target

_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = 1
_STATUSES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}

_NO_CREDENTIALS = Credentials()
_ANSWER_S = 5.0
_PAUSE_S = 0.2
_OPTIONS = [
    ("grpc.enable_http_proxy", 0),  # as for batches, which must not take the way of downloads
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What a server says of itself, or what its silence says."""

    is_serving: bool
    """Whether it takes work."""
    sentence: str
    """One line about it."""
    round_trip_s: float
    """From the question to the answer, or to giving up, seconds; a first question opens the connection too."""
    is_hopeless: bool = False
    """Whether it is no use to ask again: the two sides cannot agree on TLS."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `samix health HOST:PORT|unix:///PATH [--service NAME | --mixer NAME] [--wait SECONDS]`.

    Returns:
        0 if it serves, 1 if not; argparse exits with 2 for wrong flags.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    service = f"model/{args.mixer}" if args.mixer else args.service
    try:
        opened = open_health_channel(args.target, credentials_of(args))
    except ConfigError as error:
        parser.error(str(error))
    with opened as channel:
        health = _wait_until_serving(channel, service, args.wait) if args.wait else ask_health(channel, service)
    print(f"{args.target}: {health.sentence}")
    return 0 if health.is_serving else 1


def open_health_channel(target: str, credentials: Credentials = _NO_CREDENTIALS) -> grpc.Channel:
    """Make a channel for questions of health alone, which need no token; the caller closes it.

    Raises:
        ConfigError: if a file of the credentials cannot be used.
    """
    return open_channel(target, credentials, _OPTIONS)


def ask_health(channel: grpc.Channel, service: str = "", *, timeout_s: float = _ANSWER_S) -> Health:
    """Ask once.

    Args:
        channel: to the server.
        service: a gRPC service, `model/NAME` for a mixer, or nothing for the whole server.
        timeout_s: longest to wait for the answer, seconds.
    """
    check = channel.unary_unary(_CHECK, StringValue.SerializeToString, Int32Value.FromString)
    started_s = time.monotonic()
    try:
        answer = check(StringValue(value=service), timeout=timeout_s)
    except grpc.RpcError as error:
        code, details = code_of(error)
        return Health(
            is_serving=False,
            sentence=_refusal(code, details, service, timeout_s),
            round_trip_s=time.monotonic() - started_s,
            is_hopeless=code is grpc.StatusCode.UNAVAILABLE and trust_problem(details) is not None,
        )
    round_trip_s = time.monotonic() - started_s
    subject = _subject(service)
    if answer.value == _SERVING:
        sentence = f"{subject} is serving ({1000 * round_trip_s:.1f} ms)"
        return Health(is_serving=True, sentence=sentence, round_trip_s=round_trip_s)
    status = _STATUSES.get(answer.value, str(answer.value))
    sentence = f"{subject} is not serving ({status}): it warms up or drains; its status page says which"
    return Health(is_serving=False, sentence=sentence, round_trip_s=round_trip_s)


def code_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Take the status of a call that failed, its details in one line."""
    assert isinstance(error, grpc.Call)  # every RpcError of a call is also the call
    return error.code(), " ".join((error.details() or "").split())


def _wait_until_serving(channel: grpc.Channel, service: str, wait_s: float) -> Health:
    deadline_s = time.monotonic() + wait_s
    while True:
        # At least a moment: an answer that had no time to come would say less than the one before it.
        remaining_s = max(deadline_s - time.monotonic(), _PAUSE_S)
        health = ask_health(channel, service, timeout_s=min(_ANSWER_S, remaining_s))
        if health.is_serving or health.is_hopeless or time.monotonic() + _PAUSE_S >= deadline_s:
            return health
        time.sleep(_PAUSE_S)


def _refusal(code: grpc.StatusCode, details: str, service: str, timeout_s: float) -> str:
    if code is grpc.StatusCode.NOT_FOUND:
        return f"{_subject(service)} is not known there; `samix doctor --connect` lists its mixers"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "a gRPC server, but none that answers health checks; is it the port of a mixer server?"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {timeout_s:g} s; is the server there, and this its gRPC port?"
    if code is grpc.StatusCode.UNAVAILABLE:
        cause = trust_problem(details) or connection_hint(details)
        return f"cannot be reached; {cause or 'is the server started, and this its gRPC port?'} ({details})"
    return f"refused to say ({code.name}: {details})"


def _subject(service: str) -> str:
    if not service:
        return "the server"
    return f"mixer {service.removeprefix('model/')}" if service.startswith("model/") else f"service {service}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="samix health",
        description="Ask a server whether it serves. Ends with 0 if it does, 1 if it does not, 2 for wrong flags.",
    )
    parser.add_argument("target", type=_target, metavar="HOST:PORT|unix:///PATH", help="its gRPC address")
    about = parser.add_mutually_exclusive_group()
    about.add_argument(
        "--service", type=_name, default="", metavar="NAME", help="ask about one gRPC service; default: the server"
    )
    about.add_argument("--mixer", type=_name, default="", metavar="NAME", help="ask about one mixer")
    parser.add_argument("--wait", type=_seconds, default=0.0, metavar="SECONDS", help="wait so long for it to serve")
    add_credential_flags(parser)
    return parser


def _target(text: str) -> str:
    if not is_target(text):
        raise argparse.ArgumentTypeError(f"an address is host:port, dns:///name:port or unix:///path, got {text!r}")
    return text


def _name(text: str) -> str:
    if not text.isprintable():  # nor can bytes that are no UTF-8 be sent
        raise argparse.ArgumentTypeError(f"a name is printable text, got {text!r}")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"seconds are a number of at least 0, got {text!r}")
    return seconds
