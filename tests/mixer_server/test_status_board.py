import http.client
import io
import json
import logging
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import grpc
import numpy as np
import pytest
from framing import parts, whole
from PIL import Image
from serving import WAIT_S, ask, connect, random_call, request, serve, tiny_mixer

from mixer_server.app import MixerServer
from samix.mixer.v1.mixer_pb2_grpc import MixerServiceStub
from samix.wire import CLIENT_KEY, decode_response, encode_request

HOSTILE = '<img src=x onerror="alert(1)">&\''
HTML = ("/", "/status/live")


def get(server: MixerServer, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(server.addresses["http"], timeout=WAIT_S)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


def page(server: MixerServer, path: str = "/") -> str:
    return get(server, path)[2].decode()


def ask_as(client: str, stub: MixerServiceStub, seed: int = 0, **changes: Any) -> None:
    call = random_call(seed=seed, **changes)
    answer = stub.Mix(whole(encode_request(call)), timeout=WAIT_S, metadata=[(CLIENT_KEY, client)])
    decode_response(parts(answer), call)


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def shown() -> Iterator[MixerServer]:
    """A server with a gallery, which has mixed for one client, and refused another."""
    with serve(tiny_mixer(HOSTILE), gallery=True) as server, connect(server.addresses["grpc"]) as stub:
        ask_as(HOSTILE, stub, lam=np.full(4, 0.25, np.float32), partner=np.array([1, 0, 3, 2]))
        with pytest.raises(grpc.RpcError):
            stub.Mix(request(mixer=f"ghost{HOSTILE}"), timeout=WAIT_S)
        server._board._made_s = -1e9  # nothing of before is shown again
        yield server


def test_the_page_says_what_goes_on(shown: MixerServer):
    """The page has a section for everything an operator asks: state, numbers, mixers, queue, clients, errors, data."""
    content = page(shown)

    assert ">ready</p>" in content
    for title in (
        "Now",
        "Images each second",
        "Mixers",
        "Queue",
        "Where time goes",
        "Clients",
        "Datasets",
        "Recent errors",
        "Latest mixed pictures",
    ):
        assert f">{title}</h2>" in content
    assert 'data-label="Images">4</td>' in content
    assert ">NOT_FOUND</th>" in content
    assert "no mixer is called" in content


@pytest.mark.parametrize("path", HTML)
def test_hostile_names_are_text(shown: MixerServer, path: str):
    """What clients call themselves, mixers are called and errors quote makes no element and no attribute."""
    content = page(shown, path)

    elements = Elements(content)
    assert "&lt;img src=x onerror=" in content
    assert not [attributes for _, attributes in elements.found if any(name.startswith("on") for name in attributes)]
    assert {(image["src"] or "").partition("/")[0] for image in elements.named("img")} == {"gallery"}


def test_tables_and_pictures_can_be_read_aloud(shown: MixerServer):
    """Every table has a caption and its headings a scope, every picture a text, and the page one first heading."""
    elements = Elements(page(shown))

    assert len(elements.named("table")) == len(elements.named("caption")) > 3
    assert all(heading["scope"] in ("col", "row") for heading in elements.named("th"))
    assert all("of the first" in (image["alt"] or "") for image in elements.named("img"))
    assert all(drawing["aria-label"] for drawing in elements.named("svg"))
    assert len(elements.named("h1")) == len(elements.named("main")) == 1
    assert elements.named("html") == [{"lang": "en"}]


@pytest.mark.parametrize("path", HTML)
def test_the_page_allows_only_its_own(shown: MixerServer, path: str):
    """A browser may run the page's own script and style, ask its own server, and nothing else; nothing is stored."""
    _, headers, body = get(shown, path)

    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert b"http://" not in body.replace(b"http://www.w3.org", b"")
    assert b"https://" not in body
    assert not [attributes for _, attributes in Elements(body.decode()).found if "style" in attributes]


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/status.json", "/icon.svg", "/nothing"])
def test_other_pages_may_load_nothing(shown: MixerServer, path: str):
    """No page can be framed, kept, or taken for another type."""
    _, headers, _ = get(shown, path)

    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_works_without_a_script(shown: MixerServer):
    """Without a script the whole page comes again by itself."""
    content = page(shown)

    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in content
    assert "<button" not in content


def test_the_live_part_is_that_of_the_page(shown: MixerServer):
    """What the script fetches has the sections of the page, in their order."""
    whole_page, live = (Elements(page(shown, path)) for path in HTML)

    ids = [attributes["id"] for attributes in whole_page.named("section")]
    assert ids == [attributes["id"] for attributes in live.named("section")]
    assert len(ids) == len(set(ids))


def test_status_for_programs(shown: MixerServer):
    """The same as JSON."""
    status = json.loads(page(shown, "/status.json"))

    assert status["state"] == "ready"
    assert status["traffic"]["images_per_s"] >= 0
    assert [client["name"] for client in status["clients"]] == [HOSTILE]
    assert status["queue_limit"] == shown.config.batching.max_queue_images


def test_a_picture_shows_the_mix(shown: MixerServer):
    """A picture is a JPEG of an image, its partner and their mix; a key that is none finds nothing."""
    (picture,) = json.loads(page(shown, "/status.json"))["pictures"]

    status, headers, jpeg = get(shown, f"/gallery/{picture['key']}.jpg")
    missing = [get(shown, f"/gallery/{key}.jpg")[0] for key in ("7", "-1", "", "../0", "0%00")]

    with Image.open(io.BytesIO(jpeg)) as drawn:
        width, height = drawn.size
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert (width, height) == (3 * 128 + 8, 128)
    assert picture["lam"] == 0.25
    assert missing == [404] * 5


def test_without_the_flag_there_are_no_pictures():
    """A server keeps no pixels unless it was told to show them, and its page says so."""
    with serve(tiny_mixer()) as server, connect(server.addresses["grpc"]) as stub:
        ask(stub, random_call())
        content, status = page(server), json.loads(page(server, "/status.json"))
        picture = get(server, "/gallery/0.jpg")[0]

    assert "Off: it shows clients' data" in content
    assert "--gallery" in content
    assert (status["has_gallery"], status["pictures"], picture) == (False, [], 404)
    assert server._board._gallery is None


def test_a_stopped_server_listens_to_no_log():
    """The page's handler of the log, and its thread, go with the server."""

    before = list(logging.getLogger().handlers)
    with serve(tiny_mixer()):
        during = list(logging.getLogger().handlers)
        num_threads = sum(thread.name == "status-history" for thread in threading.enumerate())

    assert len(during) == len(before) + 1
    assert logging.getLogger().handlers == before
    assert sum(thread.name == "status-history" for thread in threading.enumerate()) == num_threads - 1
