"""Whether the ports that programs listen on by default are free, or taken by our own."""

import http.client

from samix.errors import ConfigError
from samix.health import ask_health, open_health_channel
from services.addresses import check_address, format_address
from services.doctor.findings import Finding, failure, ok, warning

RANK_PORTS = range(8010, 8018)
"""Pages of the ranks of a trainer, for a machine of eight GPUs."""

_ANSWER_S = 2.0
_OURS = "samix"


def check_grpc_port(host: str, port: int) -> Finding:
    """Look at the port for gRPC of `samix serve`."""
    reason = _taken(host, port)
    if reason is None:
        return _free("grpc port", host, port)
    with open_health_channel(format_address(host, port)) as channel:
        health = ask_health(channel, timeout_s=_ANSWER_S)
    if health.is_serving:
        return ok("grpc port", f"at {format_address(host, port)} a server is serving already")
    return failure("grpc port", reason, "stop what listens there, or samix serve --grpc-port 0 (a free one)")


def check_http_port(host: str, port: int) -> Finding:
    """Look at the port of the status page."""
    reason = _taken(host, port)
    if reason is None:
        return _free("http port", host, port)
    if answers_as_ours(host, port):
        return ok("http port", f"at {format_address(host, port)} a program of ours answers already")
    return failure("http port", reason, "stop what listens there, or samix serve --http-port 0 (a free one)")


def check_metrics_port(host: str, port: int) -> Finding:
    """Look at the port of the server's metrics, which becomes another one if it is taken."""
    reason = _taken(host, port)
    if reason is None:
        return _free("metrics port", host, port)
    if answers_as_ours(host, port):
        return ok("metrics port", f"at {format_address(host, port)} a program of ours answers already")
    cure = "the server will print a free one that it takes instead; tell Prometheus, or stop what listens there"
    return warning("metrics port", reason, cure)


def check_rank_ports(host: str) -> Finding:
    """Look at the ports of the metrics of a trainer's ranks."""
    span = f"{RANK_PORTS[0]} to {RANK_PORTS[-1]}"
    taken = [port for port in RANK_PORTS if _taken(host, port) is not None]
    others = [str(port) for port in taken if not answers_as_ours(host, port)]
    if others:
        cure = "ranks will take free ones instead and log them; tell Prometheus, or stop what listens there"
        return warning("rank ports", f"of {span}, {', '.join(others)} taken by other programs", cure)
    told = f"{span} are free" if not taken else f"{span} are free, or taken by ranks of ours: {len(taken)}"
    return ok("rank ports", told)


def answers_as_ours(host: str, port: int) -> bool:
    """Whether one of our pages answers at an address."""
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
    try:
        connection.request("HEAD", "/")
        return connection.getresponse().getheader("Server") == _OURS
    except (OSError, http.client.HTTPException):  # somebody who speaks no HTTP
        return False
    finally:
        connection.close()


def _free(check: str, host: str, port: int) -> Finding:
    return ok(check, f"{format_address(host, port)} is free" if port else f"any free one of {host}")


def _taken(host: str, port: int) -> str | None:
    try:
        check_address(host, port)
    except ConfigError as error:
        return str(error).partition(": ")[0]
    return None
