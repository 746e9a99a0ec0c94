"""Whether servers can be reached, what they host, how far they are, what time it is there."""

import http.client
import ssl
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import grpc

from samix.credentials import SYSTEM, Credentials, Metadata, open_tokens
from samix.health import ask_health, code_of, open_health_channel
from samix.mixer.v1 import mixer_pb2 as pb
from services.addresses import format_address
from services.doctor.findings import Finding, failure, ok, unchecked, warning

_LIST = "/samix.mixer.v1.MixerService/ListMixers"
_ANSWER_S = 5.0
_NUM_TRIPS = 5
_FAR_S = 0.1
_CLOCK_S = 2.0
_NO_CREDENTIALS = Credentials()
_LISTING_CURE = "is it a mixer server, and does a proxy between let our service through?"
_LISTING_CURES = {
    grpc.StatusCode.UNAUTHENTICATED: "give its token: --token-file FILE, or SAMIX_TOKEN_FILE",
    grpc.StatusCode.PERMISSION_DENIED: "take a token with role mix: --token-file FILE",
}
_CLOCK_CURE = "let both machines follow NTP (chrony, systemd-timesyncd); certificates and graphs depend on it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """What one server said."""

    findings: list[Finding] = field(default_factory=list)
    """Lines about it."""
    mixers: dict[str, str] = field(default_factory=dict)
    """Version of each mixer it hosts, by name."""


def check_servers(
    targets: Sequence[str],
    http_port: int,
    *,
    credentials: Credentials = _NO_CREDENTIALS,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Visit each server, then compare what they host.

    Args:
        targets: gRPC addresses, `host:port` or `unix:///path`.
        http_port: of their status pages, which tell the time.
        credentials: what they are shown.
        clock: of this machine, seconds since 1970.

    Raises:
        ConfigError: if a file of the credentials cannot be used.
    """
    visits = [_visit(target, http_port, credentials, clock) for target in targets]
    findings = [finding for visit in visits for finding in visit.findings]
    return findings + _compare(visit.mixers for visit in visits)


def _visit(target: str, http_port: int, credentials: Credentials, clock: Callable[[], float]) -> Visit:
    visit = Visit()
    check = f"server {target}"
    token = open_tokens(target, credentials).metadata()
    with open_health_channel(target, credentials) as channel:
        health = ask_health(channel)
        if not health.is_serving:
            cure = "start it, wait for it (samix health --wait), or look at its log and status page"
            visit.findings.append(failure(check, health.sentence, cure))
            return visit
        trip_s = min(ask_health(channel).round_trip_s for _ in range(_NUM_TRIPS))
        visit.findings.append(_told_distance(check, trip_s))
        visit.findings.append(_list_mixers(target, channel, token, visit.mixers))
    visit.findings.append(_check_clock(target, http_port, credentials, clock))
    return visit


def _told_distance(check: str, trip_s: float) -> Finding:
    told = f"is serving, {1000 * trip_s:.1f} ms there and back"
    if trip_s > _FAR_S:
        return warning(check, told, "mix nearer to the trainers, or keep more batches under way (--mixing.depth)")
    return ok(check, told)


def _list_mixers(target: str, channel: grpc.Channel, token: Metadata, found: dict[str, str]) -> Finding:
    check = f"mixers of {target}"
    ask = channel.unary_unary(_LIST, pb.ListMixersRequest.SerializeToString, pb.ListMixersResponse.FromString)
    try:
        mixers = ask(pb.ListMixersRequest(), timeout=_ANSWER_S, metadata=token).mixers
    except grpc.RpcError as error:
        code, details = code_of(error)
        told = f"cannot be listed ({code.name}: {details})"
        return failure(check, told, _LISTING_CURES.get(code, _LISTING_CURE))
    for mixer in reversed(mixers):  # of several versions the newest comes first
        found[mixer.name] = mixer.version
    if not mixers:
        return warning(check, "it hosts none", "load one: samix mixers load NAME, or --mixers at its start")
    return ok(check, ", ".join(f"{mixer.name}@{mixer.version}" for mixer in mixers))


def _check_clock(target: str, http_port: int, credentials: Credentials, clock: Callable[[], float]) -> Finding:
    """Compare the clock of a server with ours, by the whole seconds in the header of its status page."""
    check = f"clock of {target}"
    if target.startswith("unix:"):
        return ok(check, "this machine's own")
    host = target.removeprefix("dns:///").rpartition(":")[0].strip("[]")
    connection = _open_pages(host, http_port, credentials)
    asked_s = clock()
    try:
        connection.request("HEAD", "/livez")
        date = connection.getresponse().getheader("Date", "")
        # The header is cut to whole seconds, so on average half a second early.
        ahead_s = parsedate_to_datetime(date).timestamp() + 0.5 - (asked_s + clock()) / 2
    except (OSError, http.client.HTTPException, ValueError) as error:
        told = f"its status page at {format_address(host, http_port)} does not tell the time ({error})"
        return unchecked(check, told, "name its HTTP port: --server-http-port N; it listens where --host says")
    finally:
        connection.close()
    if abs(ahead_s) > _CLOCK_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        return warning(check, f"{abs(ahead_s):.0f} s {way} this one", _CLOCK_CURE)
    return ok(check, f"within {_CLOCK_S:g} s of this one")


def _open_pages(host: str, port: int, credentials: Credentials) -> http.client.HTTPConnection:
    if not credentials.tls_ca:
        return http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
    authorities = None if credentials.tls_ca == SYSTEM else credentials.tls_ca
    context = ssl.create_default_context(cafile=authorities)  # of what is open to all, so without a certificate
    return http.client.HTTPSConnection(host, port, timeout=_ANSWER_S, context=context)


def _compare(hosted: Iterable[dict[str, str]]) -> list[Finding]:
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for mixers in hosted:
        for name, version in mixers.items():
            versions[name].add(version)
    cure = "serve one version from all: a run whose batches go to both mixes by both"
    return [
        warning(f"versions of {name}", f"the servers have {', '.join(sorted(found))}", cure)
        for name, found in sorted(versions.items())
        if len(found) > 1
    ]
