import dataclasses
import io
import logging
import threading
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from clocks import Clock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from serving import random_call, tiny_mixer

from mixer_server.engine.answers import Outcome
from mixer_server.engine.passes import run_pass
from mixer_server.scheduling.job import GroupKey, Job
from mixer_server.status.clients import Clients
from mixer_server.status.gallery import NUM_PICTURES, Gallery
from mixer_server.status.history import NUM_PERIODS, PERIOD_S, History, Reading, summarise
from mixer_server.status.markup import chart, table, text
from mixer_server.status.page import live_page, status_page
from mixer_server.status.problems import ProblemHandler, Problems
from mixer_server.status.snapshot import DatasetLine, Status, Traffic, decode_status, encode_status, merge
from samix.jpeg import JpegBatch, encode_images
from samix.pieces import Pieces, ScatteredPixels
from samix.wire import MixCall
from services.metrics import SECONDS_BUCKETS

MIXER = tiny_mixer()


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


def answered(call: MixCall, client: str = "somebody") -> tuple[Job, Outcome]:
    _, _, height, width = call.pixels.shape
    key = GroupKey(MIXER.name, MIXER.version, height, width, "|u1")
    (outcome,) = run_pass(MIXER, [call])
    job = Job(key=key, mixer=MIXER, call=call, deadline_s=1e9, max_pass_images=64, client=client)
    return job, outcome


def status_of(**changes: Any) -> Status:
    empty: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(Status)}
    lists: dict[str, Any] = {name: [] for name in ("mixers", "absent", "clients", "problems", "datasets", "pictures")}
    return Status(
        **empty | {"version": "1", "state": "ready", "has_gallery": True, "traffic": Traffic()} | lists | changes
    )


def drawn(jpeg: bytes | None) -> np.ndarray:
    assert jpeg is not None
    with Image.open(io.BytesIO(jpeg)) as picture:
        return np.asarray(picture, np.int16)


def test_rates_are_of_the_last_seconds(clock: Clock):
    """Rates are over ten seconds, however long the server runs and however often it is asked."""
    counts = {100.0: 0.0, 105.0: 50.0, 110.0: 100.0, 115.0: 400.0, 118.0: 500.0}
    history = History(lambda at_s: Reading(at_s=at_s, images=counts[at_s]), clock)
    for clock.now_s in (100.0, 105.0, 110.0, 115.0):
        history.take()

    clock.now_s = 118.0
    traffic = [history.traffic() for _ in range(3)][-1]

    assert traffic.images_per_s == pytest.approx((500 - 50) / 13)
    assert traffic.history == pytest.approx([10, 10, 60, 100 / 3])


def test_history_is_bounded(clock: Clock):
    """A server that runs for ever remembers five minutes."""
    history = History(lambda at_s: Reading(at_s=at_s, images=at_s), clock)
    for clock.now_s in np.arange(1000) * PERIOD_S:
        history.take()

    traffic = history.traffic()

    assert len(traffic.history) == NUM_PERIODS
    assert len(history._readings) == NUM_PERIODS + 1
    assert traffic.images_per_s == pytest.approx(1)
    assert traffic.lately_s == pytest.approx(60)


def test_counters_that_go_back_are_no_negative_rates():
    """A mixer that is unloaded takes its counters along; nothing is below zero then."""
    traffic = summarise([Reading(at_s=0, images=1000, answered=9), Reading(at_s=10, images=4)])

    assert (traffic.images_per_s, traffic.answers_per_s, traffic.history) == (0, 0, [0])


def test_one_reading_is_enough():
    """The first page of a server has no rates, and no division by zero."""
    traffic = summarise([Reading(at_s=5)])

    assert (traffic.images_per_s, traffic.history, traffic.latency_s(0.5)) == (0, [], None)


@given(st.lists(st.integers(0, 20), min_size=15, max_size=15), st.floats(0.01, 1))
def test_latency_lies_in_the_bucket_of_its_share(counts: list[int], share: float):
    """The latency below which a share of the answers lies is in the bucket where that share is reached."""
    latency = Traffic(latency=[float(count) for count in counts]).latency_s(share)

    if not sum(counts):
        assert latency is None
        return
    place = int(np.searchsorted(np.cumsum(counts), share * sum(counts) - 1e-9))
    bounds = [0.0, *SECONDS_BUCKETS, SECONDS_BUCKETS[-1]]
    assert latency is not None
    assert bounds[place] - 1e-9 <= latency <= bounds[place + 1] + 1e-9


def test_clients_are_bounded_and_fade(clock: Clock):
    """However many names come, few are kept, the newest; what a client did long ago is no rate."""
    clients = Clients(clock)
    for number in range(1000):
        clients.note(f"client {number}", 1)
    for _ in range(100):
        clock.now_s += 0.1
        clients.note("busy", 8)

    busiest = clients.list()
    clock.now_s += 200
    later = clients.list()

    assert len(busiest) == 64
    assert (busiest[0].name, busiest[0].num_images) == ("busy", 800)
    assert busiest[0].images_per_s == pytest.approx(80 * (1 - np.exp(-1)), rel=0.02)
    assert later[0].images_per_s < 0.01
    assert later[0].seen_s == pytest.approx(200)


def test_a_flood_of_one_error_hides_no_other(clock: Clock):
    """Errors of one kind are one entry with their number and the last sentence; kinds and sentences are bounded."""
    problems = Problems(clock)
    problems.note("Mix", "INVALID_ARGUMENT", "first")
    for number in range(10_000):
        problems.note("Mix", "RESOURCE_EXHAUSTED", f"queue is full: {number}" + "x" * 10_000)
    clock.now_s += 5

    newest, oldest = problems.recent()
    for number in range(1000):
        problems.note("log", f"event {number}", "")

    assert (newest.count, newest.text[:22], len(newest.text)) == (10_000, "queue is full: 9999xxx", 300)
    assert (oldest.text, oldest.count, oldest.last_s) == ("first", 1, 5)
    assert len(problems.recent()) == 24


def test_a_problem_met_while_one_is_noted():
    """A finalizer that logs an error, run by the garbage collector at any moment, blocks nobody."""
    moments: list[float] = []

    def clock() -> float:
        moments.append(0.0)
        if len(moments) == 1:
            problems.note("log", "task was never awaited", "")
        return 0.0

    problems = Problems(clock)
    thread = threading.Thread(target=problems.note, args=("Mix", "INTERNAL", "x"), daemon=True)
    thread.start()
    thread.join(5)

    assert not thread.is_alive()
    assert len(problems.recent()) == 2


def test_warnings_of_the_log_are_noted():
    """A warning is noted with its fields and its error, without a traceback; information is not."""
    problems, log = Problems(), logging.getLogger("test_status")
    handler = ProblemHandler(problems)
    log.addHandler(handler)
    log.propagate = False

    try:
        raise ValueError("no such thing")
    except ValueError:
        log.exception("pass_failed", extra={"requests": 3})
    log.info("ready")
    log.removeHandler(handler)

    (problem,) = problems.recent()
    assert (problem.source, problem.kind) == ("test_status", "pass_failed")
    assert problem.text == "requests=3 ValueError: no such thing"


def test_gallery_is_bounded(clock: Clock):
    """At most one picture a second is taken, a few are kept, and large images are thinned out."""
    gallery = Gallery(clock)
    job, outcome = answered(random_call(2, pixels=np.zeros((2, 3, 32, 512), np.uint8)))
    for _ in range(100):
        gallery.note(job, outcome)
    alone = len(gallery.list())
    for _ in range(100):
        clock.now_s += 1.0
        gallery.note(job, outcome)

    pictures = gallery.list()

    assert alone == 1
    assert [picture.key for picture in pictures] == [str(number) for number in range(100, 100 - NUM_PICTURES, -1)]
    assert sum(image.nbytes for image in gallery._pictures[-1]._material.images) <= 2 * 3 * 256 * 32  # pyright: ignore[reportOptionalMemberAccess]
    assert gallery.jpeg("0") is None
    assert gallery.jpeg("100") == gallery.jpeg("100")


@pytest.mark.parametrize("width", [32, 512])
def test_pictures_show_what_was_mixed(clock: Clock, width: int):
    """Side by side are the image, its partner, and what a client would be sent, also after the pixels were reused."""
    gallery = Gallery(clock)
    pixels = np.stack([np.full((3, 32, width), 250, np.uint8), np.full((3, 32, width), 5, np.uint8)])
    call = random_call(2, pixels=pixels, partner=np.array([1, 0]), wants_images=True)
    job, outcome = answered(call)
    gallery.note(job, outcome)
    mixed = outcome.reply.images
    pixels[:] = 77

    picture = drawn(gallery.jpeg("0"))

    one, other, mix = picture[:, :128], picture[:, 132:260], picture[:, 264:]
    assert isinstance(mixed, np.ndarray)
    assert (abs(one - 250) < 12).all()
    assert (abs(other - 5) < 12).all()
    assert mix.mean() == pytest.approx(mixed[0].mean(), abs=6)


def floats(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / 255


def scattered(pixels: np.ndarray) -> ScatteredPixels:
    pieces, flat = Pieces(), memoryview(pixels.tobytes())
    for start in range(0, len(flat), 100_000):
        pieces.add(flat[start : start + 100_000])
    return ScatteredPixels(pieces=pieces, shape=(4, 3, 128, 128))


def jpegs(pixels: np.ndarray) -> JpegBatch:
    pictures = encode_images(pixels, 100)
    return JpegBatch(data=b"".join(pictures), lengths=[len(picture) for picture in pictures], shape=(4, 3, 128, 128))


@pytest.mark.parametrize("other_kind", [floats, scattered, jpegs])
def test_pictures_of_all_pixels(clock: Clock, other_kind: Callable[[np.ndarray], Any]):
    """Floats, pixels that came in pieces, and JPEGs that only a GPU decodes make the same picture as plain pixels."""
    slope = np.linspace(0, 255, 4 * 3 * 128 * 128).reshape(3, 128, 4, 128).transpose(2, 0, 1, 3).astype(np.uint8)
    plain, other = Gallery(clock), Gallery(clock)
    job, outcome = answered(random_call(pixels=slope))
    plain.note(job, outcome)
    job.call = dataclasses.replace(job.call, pixels=other_kind(slope))

    other.note(job, outcome)

    assert abs(drawn(other.jpeg("0")) - drawn(plain.jpeg("0"))).max() <= 6


def test_a_picture_that_cannot_be_taken_harms_nobody(clock: Clock, caplog: pytest.LogCaptureFixture):
    """Whatever is wrong with a picture is logged, and the engine goes on."""
    gallery = Gallery(clock)
    job, outcome = answered(random_call(2))
    job.call = dataclasses.replace(job.call, pixels=np.zeros((0, 3, 8, 8), np.uint8))

    gallery.note(job, outcome)

    assert "picture_not_taken" in caplog.messages
    assert gallery.list() == []


def test_status_travels():
    """A worker's status comes out of JSON as it went in."""
    clock, problems, clients = Clock(), Problems(), Clients()
    problems.note("Mix", "INTERNAL", "<b>")
    clients.note("one", 3)
    gallery = Gallery(clock)
    gallery.note(*answered(random_call(2)))
    dataset = DatasetLine(name="d", num_samples=1, num_shards=1, subscriptions=0, num_images=2, num_skipped=0)
    status = status_of(problems=problems.recent(), clients=clients.list(), pictures=gallery.list(), datasets=[dataset])

    assert decode_status(encode_status(status)) == status


@pytest.mark.parametrize("body", ["", "[]", "{}", "null", '{"mixers": 3}'])
def test_another_status_is_refused(body: str):
    """What no worker of this version wrote is an error that can be caught."""
    with pytest.raises((ValueError, TypeError, KeyError)):
        decode_status(body)


def test_workers_are_put_together():
    """Numbers of workers add up, a client of several is one, and errors and pictures say whose they are."""
    clock, statuses = Clock(), {}
    for index, images in ((0, 8), (1, 2)):
        clients, problems, gallery = Clients(clock), Problems(clock), Gallery(clock)
        clients.note("both", images)
        clients.note(f"only {index}", 1)
        problems.note("Mix", "INTERNAL", "x")
        gallery.note(*answered(random_call(2)))
        traffic = Traffic(
            images_per_s=images, history=[1.0] * (index + 1), latency=[1.0, 2.0], stages={"queue": (1.0, 2.0)}
        )
        statuses[index] = status_of(
            traffic=traffic,
            queue_images=images,
            clients=clients.list(),
            problems=problems.recent(),
            pictures=gallery.list(),
        )

    merged = merge(statuses, "worker 0: starting")

    assert merged.state == "worker 0: starting"
    assert (merged.queue_images, merged.traffic.images_per_s) == (10, 10)
    assert merged.traffic.history == [1, 2]
    assert merged.traffic.latency == [2, 4]
    assert merged.traffic.stages == {"queue": [2, 4]}
    assert [(client.name, client.num_images) for client in merged.clients] == [
        ("both", 10),
        ("only 0", 1),
        ("only 1", 1),
    ]
    assert [problem.source for problem in merged.problems] == ["worker 0: Mix", "worker 1: Mix"]
    assert [picture.key for picture in merged.pictures] == ["0-0", "1-0"]
    assert ">worker 0: starting</p>" in status_page(merged).body


def test_no_worker_at_all():
    """A page without any worker says so, as an error to those who only look at its code; the script still reads it."""
    whole, live = status_page(None), live_page(None)

    assert (whole.status, live.status) == (503, 200)
    assert "no worker answers" in whole.body
    assert "no worker answers" in live.body


class Texts(HTMLParser):
    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.labels: list[str | None] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")
            self.labels += [value for name, value in attrs if name == "data-label"]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "td":
            self.cells[-1] += data.removesuffix("\n")


@given(st.text(min_size=1))
def test_any_text_stays_text(content: str):
    """Whatever a cell or its heading holds, the table has the same elements; what cannot be seen is shown."""
    parsed = Texts(table("x", ("a", content), [("row", content)]))

    assert parsed.tags == ["table", "caption", "thead", "tr", "th", "th", "tbody", "tr", "th", "td"]
    assert len(parsed.labels) == 1
    if content.isprintable():
        assert (parsed.cells, parsed.labels) == ([content], [content])
    else:
        assert "\\x" in parsed.cells[0]


def test_text_cannot_turn_around():
    """Characters that reverse the direction of what follows are shown by their code."""
    assert text("a\u202eb\x00") == "a\\x202eb\\x00"


@given(st.lists(st.floats(0, 1e9), max_size=60))
def test_charts_stay_inside(values: list[float]):
    """All points of a chart lie inside of it, the newest at its right edge."""
    drawing = chart(values, 60, "words")

    points = drawing.rpartition('<polyline points="')[2].partition('"')[0].split()
    places = [tuple(map(float, point.split(","))) for point in points]
    assert len(places) == len(values)
    assert all(0 <= x <= 600 and 0 <= y <= 120 for x, y in places)
    assert not places or places[-1][0] == 600
