"""The pages over HTTP of a server of several workers, made from theirs."""

import html
import http.client
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from mixer_server.oip.pages import READY, ProtocolRoutes, error_page, readiness_page
from mixer_server.scheduling.batcher import SHUTTING_DOWN
from mixer_server.workers.worker_metrics import WorkerMetrics
from mixer_server.workers.worker_process import Worker
from services.http import Page, Routes
from services.metrics import metrics_page

FETCH_S = 2.0
"""Longest that a worker may take for a page of its own."""

_THREADS_PER_WORKER = 4

_WORKERS = """<h2>Workers</h2>
<p>The page above is that of worker {index}.</p>
<table>
<tr><th>worker<th>process<th>state<th>restarts<th>listens on</tr>
{rows}
</table>
"""

_NO_WORKER = (
    '<!doctype html>\n<html lang="en">\n<title>SAMix mixer server</title>\n<h1>No worker answers</h1>\n</html>\n'
)


class WorkerPages:
    """Asks all workers at once, each for a bounded time. Close it after the server of its pages."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.metrics = WorkerMetrics(len(workers), self._fetch_metrics)
        self._workers = workers
        self._executor = ThreadPoolExecutor(_THREADS_PER_WORKER * len(workers), "worker-pages")
        self._is_draining = False

    def routes(self) -> Routes:
        """Make the pages."""
        pages = {
            "/": self._status_page,
            "/livez": lambda: Page("ok\n"),
            "/readyz": self._ready_page,
            "/metrics": metrics_page(self.metrics.registry),
        }
        return ProtocolRoutes(pages, self._protocol_page)

    def drain(self) -> None:
        """Say that the server goes away; there is no way back."""
        self._is_draining = True

    def close(self) -> None:
        """Wait for pages that are being fetched."""
        self._executor.shutdown(cancel_futures=True)

    def _ready_page(self) -> Page:
        if self._is_draining:
            return Page(f"{SHUTTING_DOWN}\n", status=503)
        pages = self._fetch("/readyz")
        obstacles = [
            f"worker {worker.index}: {obstacle}\n"
            for worker in self._workers
            if (obstacle := _obstacle(worker, pages.get(worker.index))) is not None
        ]
        return Page("".join(obstacles), status=503) if obstacles else Page("ok\n")

    def _protocol_page(self, path: str) -> Page:
        """Answer for all workers whether they are ready; else what one of them answers, for they host the same."""
        if path == READY:
            return readiness_page(self._ready_page().status == 200)
        return next(iter(self._fetch(path).values()), error_page("no worker answers now; ask again", 503))

    def _status_page(self) -> Page:
        pages = self._fetch("/")
        index, page = next(iter(pages.items()), (0, Page(_NO_WORKER, status=503)))
        rows = "\n".join(_row(worker) for worker in self._workers)
        workers = _WORKERS.format(index=index, rows=rows)
        body = page.body.replace("</html>", f"{workers}</html>")
        return Page(body, status=page.status, content_type="text/html; charset=utf-8")

    def _fetch_metrics(self) -> dict[int, str]:
        return {index: page.body for index, page in self._fetch("/metrics").items() if page.status == 200}

    def _fetch(self, path: str) -> dict[int, Page]:
        futures = {
            worker.index: self._executor.submit(_fetch_page, report.addresses["http"], path)
            for worker in self._workers
            if (report := worker.report) is not None
        }
        done, late = wait(futures.values(), FETCH_S)
        for future in late:
            future.cancel()
        pages = {index: future.result() for index, future in futures.items() if future in done}
        return {index: page for index, page in pages.items() if page is not None}


def _fetch_page(address: str, path: str) -> Page | None:
    connection = http.client.HTTPConnection(address, timeout=FETCH_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        content_type = response.getheader("Content-Type") or "text/plain"
        return Page(response.read().decode(), status=response.status, content_type=content_type)
    except (OSError, http.client.HTTPException):  # it ends, or has no time
        return None
    finally:
        connection.close()


def _obstacle(worker: Worker, page: Page | None) -> str | None:
    if page is None:
        return worker.obstacle or "does not answer"
    return None if page.status == 200 else page.body.strip()


def _row(worker: Worker) -> str:
    report = worker.report
    cells = (
        worker.index,
        worker.process_id or "",
        worker.obstacle or "ready",
        worker.num_restarts,
        ", ".join(f"{name} {address}" for name, address in report.addresses.items()) if report else "",
    )
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in cells) + "</tr>"
