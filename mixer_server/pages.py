"""The server's pages over HTTP: a status page for people, probes for orchestrators, metrics for Prometheus."""

import html
from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry

from mixer_server.front.readiness import Readiness
from mixer_server.hosting.registry import Registry
from mixer_server.hosting.repository import Entry
from mixer_server.oip.catalogue import Catalogue
from mixer_server.oip.pages import ProtocolRoutes, answer_path
from samix.mixing.frozen import FrozenMixer
from services.http import Page, Routes
from services.metrics import metrics_page

_STATUS_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="5">
<title>SAMix mixer server</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884 }}
</style>
<h1>SAMix mixer server</h1>
<p>State: <strong>{state}</strong></p>
<table>
<tr><th>mixer<th>version<th>state<th>encoder<th>mode<th>image sides<th>device</tr>
{rows}
</table>
{others}
<p><a href="/metrics">metrics</a> · <a href="/readyz">readyz</a> · <a href="/livez">livez</a></p>
</html>
"""


_OTHERS = """<h2>Not served</h2>
<table>
<tr><th>mixer<th>state<th>file<th>reason</tr>
{rows}
</table>"""


def make_routes(
    registry: Registry,
    readiness: Readiness,
    metrics: CollectorRegistry,
    list_entries: Callable[[], Sequence[Entry]] = list,
    *,
    max_images: int,
) -> Routes:
    """Make the pages of a mixer server.

    Args:
        registry: what is hosted.
        readiness: whether that takes work.
        metrics: for the page of metrics.
        list_entries: lists the mixer files that the server knows.
        max_images: most images of one request.
    """
    pages = {
        "/": lambda: _status_page(registry, readiness, list_entries()),
        "/livez": lambda: Page("ok\n"),
        "/readyz": lambda: _ready_page(readiness),
        "/metrics": metrics_page(metrics),
    }
    return ProtocolRoutes(pages, partial(answer_path, Catalogue(registry, readiness, max_images)))


def _ready_page(readiness: Readiness) -> Page:
    obstacle = readiness.obstacle
    return Page("ok\n") if obstacle is None else Page(f"{obstacle}\n", status=503)


def _status_page(registry: Registry, readiness: Readiness, entries: Sequence[Entry]) -> Page:
    rows = "\n".join(_row(*_cells(mixer, registry, readiness)) for mixer in registry.mixers)
    others = "\n".join(
        _row(entry.name, entry.state, entry.file, entry.reason)
        for entry in entries
        if not any(mixer.version == entry.version for mixer in registry.versions(entry.name))
    )
    page = _STATUS_PAGE.format(
        state=html.escape(readiness.obstacle or "ready"),
        rows=rows,
        others=_OTHERS.format(rows=others) if others else "",
    )
    return Page(page, content_type="text/html; charset=utf-8")


def _cells(mixer: FrozenMixer, registry: Registry, readiness: Readiness) -> tuple[str, ...]:
    spec = mixer.spec
    is_ready = readiness.is_ready(mixer.name, mixer.version)
    is_newest = mixer in registry.versions(mixer.name)[:1]
    return (
        mixer.name,
        mixer.version,
        ("ready" if is_newest else "ready, for requests that name it") if is_ready else "not ready",
        f"{spec.backbone.name}, stage {spec.stage}",
        spec.mode,
        f"{spec.min_side} to {spec.max_side} px, trained for {spec.image_size}",
        mixer.device.type,
    )


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + "</tr>"
