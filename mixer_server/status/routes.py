"""The addresses of the status page: whole, its live part, as JSON, and its pictures."""

from collections.abc import Callable, Iterator, Mapping

from mixer_server.status.assets import ICON
from mixer_server.status.board import StatusBoard
from mixer_server.status.page import live_page, status_page
from mixer_server.status.snapshot import encode_status
from services.http import Page, Routes

PICTURES = "/gallery/"
PICTURE_TYPE = "image/jpeg"
_SUFFIX = ".jpg"


class PictureRoutes(Mapping[str, Callable[[], Page]]):
    """Some pages, and beside them one for each picture, which come and go."""

    def __init__(self, pages: Routes, find: Callable[[str], Page]) -> None:
        """Add pictures.

        Args:
            pages: those there are without them.
            find: makes the page of the picture of a key.
        """
        self._pages = pages
        self._find = find

    def __getitem__(self, path: str) -> Callable[[], Page]:
        if path.startswith(PICTURES) and path.endswith(_SUFFIX):
            return lambda: self._find(path[len(PICTURES) : -len(_SUFFIX)])
        return self._pages[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pages)

    def __len__(self) -> int:
        return len(self._pages)


def status_routes(board: StatusBoard) -> dict[str, Callable[[], Page]]:
    """Make the pages of one server, but for its pictures."""
    return {
        "/": lambda: status_page(board.status()),
        "/status/live": lambda: live_page(board.status()),
        "/status.json": lambda: Page(encode_status(board.status()), content_type="application/json"),
        "/icon.svg": icon_page,
    }


def icon_page() -> Page:
    """Make what a browser shows beside the title."""
    return Page(ICON, content_type="image/svg+xml")


def picture_page(jpeg: bytes | None) -> Page:
    """Make the page of a picture; None says that it is gone."""
    if jpeg is None:
        return Page("this picture is gone, or there never was one\n", status=404)
    return Page("", content_type=PICTURE_TYPE, data=jpeg)
