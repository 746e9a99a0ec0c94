"""Serves a folder of shards over HTTP on port 0, counts requests, and fails when it is told to."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

Fault = Callable[["ShardHandler", bytes], None]


@dataclass
class ShardSite:
    """What a test sees of the server."""

    url: str
    """Address of the folder, without a slash at its end."""
    requests: Counter[str] = field(default_factory=Counter)
    """Requests by the name of the file."""
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """By the name of the file: each request takes the first one and answers with it, while there are any."""


class ShardHandler(SimpleHTTPRequestHandler):
    """Answers from the folder, or as the site's faults say."""

    def __init__(self, *args: object, site: ShardSite, **kwargs: object) -> None:
        self._site = site
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self._site.requests[name] += 1
        path = Path(self.translate_path(self.path))
        if faults := self._site.faults.get(name):
            faults.pop(0)(self, path.read_bytes() if path.is_file() else b"")
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Keep the output of tests clean."""

    def answer(self, body: bytes, *, claimed: int | None = None, status: int = 200) -> None:
        """Send a body that may be shorter than its header claims."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


def cut_short(handler: ShardHandler, content: bytes) -> None:
    """Send half of a file and hang up."""
    handler.answer(content[: len(content) // 2], claimed=len(content))


def overloaded(handler: ShardHandler, _content: bytes) -> None:
    """Answer 503."""
    handler.answer(b"later", status=503)


def wrong_page(handler: ShardHandler, _content: bytes) -> None:
    """Answer 200 with a page instead of the file."""
    handler.answer(b"<html>please log in</html>")


def held_until(event: threading.Event) -> Fault:
    """Answer with the file, but only when an event happens."""

    def answer(handler: ShardHandler, content: bytes) -> None:
        assert event.wait(20)
        handler.answer(content)

    return answer


@contextmanager
def serve_shards(folder: Path) -> Iterator[ShardSite]:
    """Serve a folder for the block."""
    site = ShardSite("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(ShardHandler, site=site, directory=str(folder)))
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with patch.dict(os.environ, no_proxy="127.0.0.1"):  # urllib would ask a proxy of the environment
            yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
