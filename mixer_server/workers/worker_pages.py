"""The pages over HTTP of a server of several workers, made from theirs."""

import http.client
import logging
import string
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from urllib.parse import quote

from mixer_server.oip.pages import READY, ProtocolRoutes, error_page, readiness_page
from mixer_server.scheduling.batcher import SHUTTING_DOWN
from mixer_server.status.markup import Markup, section, table
from mixer_server.status.page import live_page, status_page
from mixer_server.status.routes import PICTURE_TYPE, PICTURES, PictureRoutes, icon_page, picture_page
from mixer_server.status.snapshot import Status, decode_status, encode_status, merge
from mixer_server.workers.page_secret import Headers
from mixer_server.workers.worker_metrics import WorkerMetrics
from mixer_server.workers.worker_process import Worker
from services.http import Page, Routes
from services.metrics import metrics_page

log = logging.getLogger(__name__)

FETCH_S = 2.0
"""Longest that a worker may take for a page of its own."""

_NO_HEADERS: Headers = {}
_THREADS_PER_WORKER = 4
_NO_WORKER = "no worker answers now; ask again"
_READY = "ready"
_SENT_AS_IT_IS = string.punctuation  # above all %; http.client refuses other than ASCII


class WorkerPages:
    """Asks all workers at once, each for a bounded time. Close it after the server of its pages."""

    def __init__(self, workers: Sequence[Worker], headers: Headers = _NO_HEADERS) -> None:
        """Ask workers.

        Args:
            workers: whom.
            headers: of every question, by which they know their parent.
        """
        self.metrics = WorkerMetrics(len(workers), self._fetch_metrics)
        self._workers = workers
        self._headers = headers
        self._executor = ThreadPoolExecutor(_THREADS_PER_WORKER * len(workers), "worker-pages")
        self._is_draining = False

    def routes(self) -> Routes:
        """Make the pages."""
        pages = {
            "/": lambda: status_page(self._status(), [_workers_section(self._workers)]),
            "/status/live": lambda: live_page(self._status(), [_workers_section(self._workers)]),
            "/status.json": self._status_data,
            "/icon.svg": icon_page,
            "/livez": lambda: Page("ok\n"),
            "/readyz": self._ready_page,
            "/metrics": metrics_page(self.metrics.registry),
        }
        return ProtocolRoutes(PictureRoutes(pages, self._picture_page), self._protocol_page)

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
        return next(iter(self._fetch(quote(path, _SENT_AS_IT_IS)).values()), error_page(_NO_WORKER, 503))

    def _status(self) -> Status | None:
        """Put together what all workers say; None where none answers."""
        statuses = {}
        for index, page in self._fetch("/status.json").items():
            try:
                statuses[index] = decode_status(page.body)
            except (ValueError, TypeError, KeyError) as error:
                log.warning("worker_status_unreadable", extra={"worker": index, "reason": str(error)})
        return merge(statuses, self._state(statuses)) if statuses else None

    def _state(self, statuses: Mapping[int, Status]) -> str:
        """Say what keeps workers from taking work, also those that said nothing; `ready` where nothing does."""
        if self._is_draining:
            return SHUTTING_DOWN
        states = {worker.index: _state_of(worker, statuses.get(worker.index)) for worker in self._workers}
        return "; ".join(f"worker {index}: {state}" for index, state in states.items() if state != _READY) or _READY

    def _status_data(self) -> Page:
        status = self._status()
        if status is None:
            return error_page(_NO_WORKER, 503)
        return Page(encode_status(status), content_type="application/json")

    def _picture_page(self, key: str) -> Page:
        """Ask the worker whose picture it is."""
        index, _, number = key.partition("-")
        for worker in self._workers:
            if str(worker.index) == index and worker.report is not None and number.isdecimal():
                page = _fetch_page(worker.report.addresses["http"], f"{PICTURES}{number}.jpg", self._headers)
                return page if page is not None else picture_page(None)
        return picture_page(None)

    def _fetch_metrics(self) -> dict[int, str]:
        return {index: page.body for index, page in self._fetch("/metrics").items() if page.status == 200}

    def _fetch(self, path: str) -> dict[int, Page]:
        futures = {
            worker.index: self._executor.submit(_fetch_page, report.addresses["http"], path, self._headers)
            for worker in self._workers
            if (report := worker.report) is not None
        }
        done, late = wait(futures.values(), FETCH_S)
        for future in late:
            future.cancel()
        pages = {index: future.result() for index, future in futures.items() if future in done}
        return {index: page for index, page in pages.items() if page is not None}


def _fetch_page(address: str, path: str, headers: Headers) -> Page | None:
    connection = http.client.HTTPConnection(address, timeout=FETCH_S)
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        content_type = response.getheader("Content-Type") or "text/plain"
        data = response.read()
        if content_type == PICTURE_TYPE:
            return Page("", status=response.status, content_type=content_type, data=data)
        return Page(data.decode(), status=response.status, content_type=content_type)
    except (OSError, http.client.HTTPException):  # it ends, or has no time
        return None
    finally:
        connection.close()


def _obstacle(worker: Worker, page: Page | None) -> str | None:
    if page is None:
        return worker.obstacle or "does not answer"
    return None if page.status == 200 else page.body.strip()


def _state_of(worker: Worker, status: Status | None) -> str:
    return status.state if status is not None else worker.obstacle or "does not answer"


def _workers_section(workers: Sequence[Worker]) -> Markup:
    rows = [
        (worker.index, worker.process_id or "", worker.obstacle or "ready", worker.num_restarts, _addresses(worker))
        for worker in workers
    ]
    columns = ("Worker", "Process", "State", "Restarts", "Listens on")
    return section("workers", "Workers", table("Processes that share the port", columns, rows))


def _addresses(worker: Worker) -> str:
    report = worker.report
    return ", ".join(f"{name} {address}" for name, address in report.addresses.items()) if report else ""
