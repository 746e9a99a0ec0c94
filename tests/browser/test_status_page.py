"""The status page in a real browser. Set SAMIX_SCREENSHOTS to a folder to look at it."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from framing import whole
from serving import WAIT_S, connect, random_call, serve, tiny_mixer

from mixer_server.app import MixerServer
from samix.wire import CLIENT_KEY, encode_request

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"),
]

HOSTILE = "<script>document.title='broken into'</script>"
WAIT_MS = 1000 * WAIT_S


@dataclass
class Seen:
    """What the browser said and asked for."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox needs rights that containers lack; the only page it opens is ours.
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def server() -> Iterator[MixerServer]:
    with serve(tiny_mixer(HOSTILE), gallery=True) as running, traffic(running):
        yield running


@contextmanager
def traffic(server: MixerServer) -> Iterator[None]:
    """Ask for mixes all the time, some of them of a mixer that is not there."""
    is_over = threading.Event()

    def ask_on() -> None:
        with connect(server.addresses["grpc"]) as stub:
            number = 0
            while not is_over.wait(0.1):
                call = random_call(8, seed=number, mixer=HOSTILE * (number % 5 == 0) and f"no {HOSTILE}")
                answer = stub.Mix.future(whole(encode_request(call)), timeout=WAIT_S, metadata=[(CLIENT_KEY, HOSTILE)])  # pyright: ignore[reportFunctionMemberAccess]
                answer.exception()
                number += 1

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextmanager
def opened(browser: Any, server: MixerServer, **options: Any) -> Iterator[tuple[Any, Seen]]:
    context, seen = browser.new_context(**options), Seen()
    page = context.new_page()
    page.on("console", lambda message: seen.messages.append(message.text))
    page.on("pageerror", lambda error: seen.messages.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(f"http://{server.addresses['http']}/")
    yield page, seen
    context.close()


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_on_screens(browser: Any, server: MixerServer, scheme: str, width: int):
    """In both schemes, on a desk and on a phone, everything fits the width and is drawn in that scheme's colours."""
    size = {"width": width, "height": 900}
    with opened(browser, server, viewport=size, color_scheme=scheme) as (page, seen):
        page.wait_for_selector(".gallery li:nth-child(3)", timeout=WAIT_MS)
        until(page, "[...document.images].every(image => image.complete && image.naturalWidth)")
        if folder := os.environ.get("SAMIX_SCREENSHOTS"):
            page.screenshot(path=str(Path(folder) / f"status-{scheme}-{width}.png"), full_page=True)
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert overflow == 0
    assert background == ("rgb(18, 22, 29)" if scheme == "dark" else "rgb(245, 246, 248)")
    assert seen.messages == []


def test_live_numbers(browser: Any, server: MixerServer):
    """Numbers change by themselves, without another load of the page, and stand still while updates are paused."""
    answered = "parseInt(document.querySelector('#clients tbody td:nth-of-type(2)')?.textContent)"
    with opened(browser, server) as (page, seen):
        page.evaluate("window.isTheSame = true")
        until(page, f"{answered} > 0")
        first = page.evaluate(answered)
        until(page, f"{answered} > {first}")
        page.evaluate("window.picture = document.querySelector('.gallery img')")
        until(page, "document.querySelector('.gallery img') !== window.picture")
        is_kept = page.evaluate("window.picture.isConnected")
        is_same = page.evaluate("window.isTheSame")
        page.get_by_role("button", name="Pause updates").click()
        page.wait_for_timeout(500)  # what was asked for before comes
        num_requests, paused = len(seen.requests), page.evaluate(answered)
        page.wait_for_timeout(3000)
        still = page.evaluate(answered)

    assert is_kept, "a picture that is still listed is not loaded again"
    assert is_same
    assert (still, len(seen.requests)) == (paused, num_requests)
    assert seen.messages == []


def test_nothing_leaves_the_host(browser: Any, server: MixerServer):
    """The browser asks the server itself and nobody else, and each picture once; hostile names run nothing."""
    origin = f"http://{server.addresses['http']}/"
    with opened(browser, server) as (page, seen):
        page.wait_for_selector(".gallery li:nth-child(4)", timeout=WAIT_MS)
        title = page.title()
        sections = page.locator("#clients").inner_text() + page.locator("#problems").inner_text()

    pictures = [url for url in seen.requests if "/gallery/" in url]
    assert {url[: len(origin)] for url in seen.requests} == {origin}
    assert len(pictures) == len(set(pictures)) >= 4
    assert title == "SAMix mixer server"
    assert sections.count(HOSTILE) >= 2
    assert seen.messages == []


def test_without_a_script(browser: Any, server: MixerServer):
    """A browser that runs no script sees all of it, and comes again by itself."""
    with opened(browser, server, java_script_enabled=False) as (page, seen):
        page.wait_for_selector("#mixers table", timeout=WAIT_MS)
        with page.expect_navigation(timeout=WAIT_MS):
            pass
        content = page.content()

    assert "Latest mixed pictures" in content
    assert "Pause" not in page_text(content)
    assert seen.requests.count(f"http://{server.addresses['http']}/") == 2


def test_a_server_that_is_gone(browser: Any):
    """When the server ends, the page says that what it shows is old."""
    with serve(tiny_mixer()) as server, opened(browser, server) as (page, _):
        server.stop()
        page.wait_for_selector("#said.lost", timeout=WAIT_MS)
        words = page.inner_text("#said")

    assert words == "The server does not answer; what is shown is old"


def until(page: Any, expression: str) -> None:
    """Evaluate it until it holds; the browser may not do that by itself, under the page's policy."""
    deadline_s = time.monotonic() + WAIT_S
    while not page.evaluate(expression):
        assert time.monotonic() < deadline_s, f"never came true: {expression}"
        page.wait_for_timeout(50)


def page_text(content: str) -> str:
    return content.partition("<script>")[0]
