"""The server's pages over HTTP: a status page for people, probes for orchestrators, metrics for Prometheus."""

import html

from prometheus_client import CollectorRegistry

from mixer_server.readiness import Readiness
from mixer_server.registry import Registry
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
<p><a href="/metrics">metrics</a> · <a href="/readyz">readyz</a> · <a href="/livez">livez</a></p>
</html>
"""


def make_routes(registry: Registry, readiness: Readiness, metrics: CollectorRegistry) -> Routes:
    """Make the pages of a mixer server."""
    return {
        "/": lambda: _status_page(registry, readiness),
        "/livez": lambda: Page("ok\n"),
        "/readyz": lambda: _ready_page(readiness),
        "/metrics": metrics_page(metrics),
    }


def _ready_page(readiness: Readiness) -> Page:
    obstacle = readiness.obstacle
    return Page("ok\n") if obstacle is None else Page(f"{obstacle}\n", status=503)


def _status_page(registry: Registry, readiness: Readiness) -> Page:
    rows = "\n".join(_row(mixer, readiness) for mixer in registry.mixers)
    state = html.escape(readiness.obstacle or "ready")
    return Page(_STATUS_PAGE.format(state=state, rows=rows), content_type="text/html; charset=utf-8")


def _row(mixer: FrozenMixer, readiness: Readiness) -> str:
    spec = mixer.spec
    cells = (
        mixer.name,
        mixer.version,
        "ready" if readiness.is_ready(mixer.name) else "not ready",
        f"{spec.backbone.name}, stage {spec.stage}",
        spec.mode,
        f"{spec.min_side} to {spec.max_side} px, trained for {spec.image_size}",
        mixer.device.type,
    )
    return "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + "</tr>"
