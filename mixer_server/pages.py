"""The server's pages over HTTP: a status page for people, probes for orchestrators, metrics for Prometheus."""

from functools import partial

from prometheus_client import CollectorRegistry

from mixer_server.front.readiness import Readiness
from mixer_server.hosting.registry import Registry
from mixer_server.oip.catalogue import Catalogue
from mixer_server.oip.pages import ProtocolRoutes, answer_path
from mixer_server.status.board import StatusBoard
from mixer_server.status.routes import PictureRoutes, picture_page, status_routes
from services.http import Page, Routes
from services.metrics import metrics_page


def make_routes(
    registry: Registry,
    readiness: Readiness,
    metrics: CollectorRegistry,
    board: StatusBoard,
    *,
    max_images: int,
) -> Routes:
    """Make the pages of a mixer server.

    Args:
        registry: what is hosted.
        readiness: whether that takes work.
        metrics: for the page of metrics.
        board: knows what the status page says.
        max_images: most images of one request.
    """
    pages = {
        **status_routes(board),
        "/livez": lambda: Page("ok\n"),
        "/readyz": lambda: _ready_page(readiness),
        "/metrics": metrics_page(metrics),
    }
    routes = PictureRoutes(pages, lambda key: picture_page(board.jpeg(key)))
    return ProtocolRoutes(routes, partial(answer_path, Catalogue(registry, readiness, max_images)))


def _ready_page(readiness: Readiness) -> Page:
    obstacle = readiness.obstacle
    return Page("ok\n") if obstacle is None else Page(f"{obstacle}\n", status=503)
