"""What every program's metrics have in common: a registry of its own, and a page for Prometheus."""

import logging
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from samix.errors import ConfigError
from services.addresses import check_port
from services.http import Page, PageServer, serve_pages
from services.security.door import Door

log = logging.getLogger(__name__)

SECONDS_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
"""Buckets of every histogram of durations: a batch of 64 takes 0.5 ms on a GPU, seconds on a laptop."""

_OPEN_DOOR = Door()


def make_registry() -> CollectorRegistry:
    """Make a registry that holds what is known of any Python process; programs add their own families."""
    disable_created_metrics()  # a series more for each counter, which only OpenMetrics readers know what to do with
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def metrics_page(registry: CollectorRegistry) -> Callable[[], Page]:
    """Make the page for Prometheus."""
    return lambda: Page(generate_latest(registry).decode(), content_type=CONTENT_TYPE_PLAIN_0_0_4)


def serve_metrics(registry: CollectorRegistry, host: str, port: int, *, door: Door = _OPEN_DOOR) -> PageServer:
    """Serve `/metrics`; a port that is taken becomes a free one, with a warning.

    Monitoring is no reason to stop a run, and several runs on one machine all want the same port.

    Args:
        registry: what is counted.
        host: address to listen on.
        port: port to listen on.
        door: who may see the page.

    Raises:
        ConfigError: if not even a free port of that host can be had, or the port is no port.
    """
    check_port(port)
    routes = {"/metrics": metrics_page(registry)}
    try:
        return serve_pages(routes, host, port, door=door)
    except ConfigError as error:
        if port == 0:
            raise
        server = serve_pages(routes, host, 0, door=door)
        log.warning("metrics_port_taken", extra={"wanted": port, "got": server.port, "reason": str(error)})
        return server
