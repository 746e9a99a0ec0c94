import signal
import time
from collections.abc import Callable, Iterator

import pytest
from clocks import Clock
from hypothesis import given
from hypothesis import strategies as st
from serving import WAIT_S

from mixer_server.status.snapshot import Status, Traffic, encode_status
from mixer_server.workers.worker_link import Report, decode_report
from mixer_server.workers.worker_pages import WorkerPages
from mixer_server.workers.worker_process import Worker, describe_status, next_pause
from services.http import Page, PageServer, serve_pages

REPORT = Report(addresses={"http": "127.0.0.1:1"}, mixers=["tiny@1"])

NOTHING_DONE = Status(
    version="1",
    state="ready",
    uptime_s=1.0,
    traffic=Traffic(),
    queue_requests=0,
    queue_images=0,
    queue_limit=8,
    queue_clients=0,
    in_flight=0,
    streams=0,
    memory_bytes=0,
    memory_limit_bytes=8,
    has_gallery=False,
    mixers=[],
    absent=[],
    clients=[],
    problems=[],
    datasets=[],
    pictures=[],
)

CONNECT = "import os, signal, socket, sys\nlink = socket.socket(fileno=int(sys.argv[-1]))\n"
SAY = "link.sendall(sys.argv[1].encode() + b'\\n')\n"
WAIT = "link.recv(1)\n"

Start = Callable[..., Worker]


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def start(clock: Clock) -> Iterator[Start]:
    """Start a worker that runs some Python, with a report as its first argument."""
    started: list[Worker] = []

    def start(code: str, report: Report = REPORT, index: int = 0) -> Worker:
        said = report.encode().decode().strip()
        worker = Worker(index, args=["-c", CONNECT + code, said], environment={}, clock=clock)
        started.append(worker)
        worker.start()
        return worker

    yield start
    for worker in started:
        worker.join(0)


def look_until(worker: Worker, is_so: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not come to that"
        worker.look()


def test_ready_when_it_says_so(start: Start):
    """A worker is starting until its report has come, and then tells where it listens."""
    worker = start(SAY + WAIT)

    before = worker.obstacle
    look_until(worker, lambda: worker.report)

    assert before == "starting"
    assert (worker.report, worker.obstacle) == (REPORT, None)


def test_drains_when_asked(start: Start):
    """A worker that ends with 0 on SIGTERM ended in good order."""
    worker = start("signal.signal(15, lambda *_: os._exit(0))\n" + SAY + WAIT)
    look_until(worker, lambda: worker.report)

    worker.terminate()

    assert worker.join(WAIT_S)
    assert worker.process_id is None


def test_stopped_before_it_could_serve(start: Start):
    """SIGTERM that comes before a worker serves leaves nothing unanswered."""
    worker = start(WAIT)

    worker.terminate()

    assert worker.join(WAIT_S)


def test_killed_when_it_does_not_end(start: Start, caplog: pytest.LogCaptureFixture):
    """A worker that ignores SIGTERM is killed after the time it has, which is no good order."""
    worker = start("signal.signal(15, signal.SIG_IGN)\n" + SAY + WAIT)
    look_until(worker, lambda: worker.report)

    worker.terminate()

    assert not worker.join(0.05)
    assert worker.end is not None
    assert worker.end.status == -signal.SIGKILL
    assert "worker_killed" in caplog.messages


def test_says_why_it_cannot_start(start: Start):
    """The sentence of a worker that refuses its configuration reaches the parent, however soon it ends."""
    worker = start(SAY + "sys.exit(2)", Report(addresses={}, mixers=[], refusal="there is no mixer"))

    look_until(worker, lambda: worker.end)

    assert worker.end is not None
    assert (worker.end.status, worker.end.refusal, worker.end.was_ready) == (2, "there is no mixer", False)


def test_starts_again_after_a_pause(start: Start, clock: Clock):
    """A worker that was killed is started again when its pause is over, and not before."""
    worker = start(SAY + "os.kill(os.getpid(), 9)")
    look_until(worker, lambda: worker.end)
    obstacle = worker.obstacle

    clock.now_s += 0.49
    worker.restart_when_due()
    early = worker.process_id
    clock.now_s += 0.02
    worker.restart_when_due()

    assert obstacle == "was killed by SIGKILL, starts again soon"
    assert early is None
    assert worker.process_id is not None
    assert worker.num_restarts == 1


def test_no_room_for_a_process(clock: Clock, caplog: pytest.LogCaptureFixture):
    """A start that the system refuses is logged and tried again after a pause."""
    worker = Worker(0, args=["x" * (1 << 20)], environment={}, clock=clock)

    worker.restart_when_due()
    worker.restart_when_due()
    tries_at_once = worker.num_restarts
    clock.now_s += 0.51
    worker.restart_when_due()

    assert (tries_at_once, worker.num_restarts) == (1, 2)
    assert worker.process_id is None
    assert caplog.messages == ["worker_not_started"] * 2


@given(st.lists(st.floats(0, 59), min_size=1, max_size=20))
def test_pauses_grow(served_s: list[float]):
    """The pause doubles from half a second to half a minute, as long as the worker does not last a minute."""
    pause_s, pauses = 0.0, []
    for duration_s in served_s:
        pause_s = next_pause(pause_s, duration_s)
        pauses.append(pause_s)

    assert pauses == [min(0.5 * 2**count, 30.0) for count in range(len(pauses))]
    assert next_pause(pause_s, 60.0) == 0.5


def test_statuses_in_words():
    """A signal is called by its name, any other end by its status."""
    assert (describe_status(-11), describe_status(3)) == ("was killed by SIGSEGV", "ended with status 3")


@given(st.dictionaries(st.text(), st.text()), st.lists(st.text()), st.text())
def test_reports_are_lines(addresses: dict[str, str], mixers: list[str], refusal: str):
    """Whatever a report says, it is one line, and read as it was written."""
    report = Report(addresses=addresses, mixers=mixers, refusal=refusal)

    line = report.encode()

    assert line.count(b"\n") == 1
    assert decode_report(line) == report


@pytest.fixture
def served() -> Iterator[PageServer]:
    """Pages of a worker that is ready."""
    status = encode_status(NOTHING_DONE)
    pages = {"/status.json": Page(status), "/readyz": Page("ok\n"), "/metrics": Page("mixer_batches_total 3\n")}
    server = serve_pages({path: lambda page=page: page for path, page in pages.items()}, "127.0.0.1", 0)
    yield server
    server.close()


@pytest.fixture
def make_pages() -> Iterator[Callable[..., WorkerPages]]:
    made: list[WorkerPages] = []

    def make(*workers: Worker) -> WorkerPages:
        made.append(WorkerPages(workers))
        return made[-1]

    yield make
    for pages in made:
        pages.close()


def ready(start: Start, port: int, index: int = 0) -> Worker:
    worker = start(SAY + WAIT, Report(addresses={"http": f"127.0.0.1:{port}"}, mixers=[]), index=index)
    look_until(worker, lambda: worker.report)
    return worker


def test_pages_of_all_workers(start: Start, served: PageServer, make_pages: Callable[..., WorkerPages]):
    """All workers ready means ready; the status page is that of one with a line for each; metrics are of both."""
    first, second = ready(start, served.port), ready(start, served.port, index=1)
    routes = make_pages(first, second).routes()

    status, readiness, metrics = (routes[path]() for path in ("/", "/readyz", "/metrics"))

    assert (readiness.status, readiness.body) == (200, "ok\n")
    assert status.status == 200
    assert f'data-label="Process">{first.process_id}</td>' in status.body
    assert f'data-label="Process">{second.process_id}</td>' in status.body
    assert 'mixer_batches_total{worker="0"} 3.0' in metrics.body
    assert 'mixer_batches_total{worker="1"} 3.0' in metrics.body


def test_a_path_of_other_letters_is_asked_for(start: Start, make_pages: Callable[..., WorkerPages]):
    """A path that is no ASCII reaches a worker percent-encoded, one that is encoded already as it is."""
    pages = {path: lambda path=path: Page(path) for path in ("/v2/models/%C3%A9", "/v2/models/a%20b")}
    server = serve_pages(pages, "127.0.0.1", 0)
    routes = make_pages(ready(start, server.port)).routes()

    answers = [routes[path]() for path in ("/v2/models/\xe9", "/v2/models/a%20b")]

    server.close()
    assert [answer.body for answer in answers] == list(pages)


def test_pages_while_a_worker_starts(start: Start, served: PageServer, make_pages: Callable[..., WorkerPages]):
    """One worker that is not ready is enough not to be ready; the page names it."""
    routes = make_pages(ready(start, served.port), start(WAIT, index=1)).routes()

    status, readiness, metrics = (routes[path]() for path in ("/", "/readyz", "/metrics"))

    assert (readiness.status, readiness.body) == (503, "worker 1: starting\n")
    assert 'data-label="State">starting</td>' in status.body
    assert "mixer_workers_up 1.0" in metrics.body


def test_pages_when_no_worker_answers(start: Start, unused_port: int, make_pages: Callable[..., WorkerPages]):
    """A worker that cannot be asked is not ready, and the pages say so instead of failing."""
    routes = make_pages(ready(start, unused_port)).routes()

    status, readiness, metrics = (routes[path]() for path in ("/", "/readyz", "/metrics"))

    assert (readiness.status, readiness.body) == (503, "worker 0: does not answer\n")
    assert (status.status, metrics.status) == (503, 200)
    assert "no worker answers" in status.body
    assert "mixer_workers_up 0.0" in metrics.body


@pytest.fixture
def unused_port(served: PageServer) -> int:
    other = serve_pages({}, "127.0.0.1", 0)
    other.close()
    return other.port


def test_pages_while_draining(start: Start, served: PageServer, make_pages: Callable[..., WorkerPages]):
    """A server that drains is alive, and not ready whatever its workers say."""
    pages = make_pages(ready(start, served.port))
    pages.drain()
    routes = pages.routes()

    assert routes["/readyz"]().status == 503
    assert routes["/livez"]().status == 200
