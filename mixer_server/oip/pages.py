"""The Open Inference Protocol over HTTP: health and descriptions, as JSON. Batches are mixed over gRPC alone."""

import json
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import unquote

from mixer_server.oip.catalogue import Catalogue
from samix.errors import MixerError, MixerNotFound
from samix.inference.v2 import inference_pb2 as pb
from services.http import Page, Routes

ROOT = "/v2"
LIVE, READY = f"{ROOT}/health/live", f"{ROOT}/health/ready"

_JSON = "application/json"
_MODELS = f"{ROOT}/models/"
_KNOWN = (ROOT, LIVE, READY, *(f"{_MODELS}NAME{end}" for end in ("", "/ready", "/versions/VERSION[/ready]")))


class ProtocolRoutes(Mapping[str, Callable[[], Page]]):
    """Some pages, and those of the protocol beside them: every path below /v2, for models come and go."""

    def __init__(self, pages: Routes, answer: Callable[[str], Page]) -> None:
        """Add the protocol's pages.

        Args:
            pages: those there are without it.
            answer: makes the page of a path below /v2.
        """
        self._pages = pages
        self._answer = answer

    def __getitem__(self, path: str) -> Callable[[], Page]:
        if path == ROOT or path.startswith(f"{ROOT}/"):
            return lambda: self._answer(path)
        return self._pages[path]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._pages, ROOT))

    def __len__(self) -> int:
        return len(self._pages) + 1


def answer_path(catalogue: Catalogue, path: str) -> Page:
    """Make the page of a path below /v2."""
    try:
        return _answer(catalogue, path.rstrip("/"))
    except MixerNotFound as error:
        return error_page(str(error), 404)
    except MixerError as error:
        return error_page(str(error), 503)


def error_page(reason: str, status: int) -> Page:
    """Say why there is no other page."""
    return _page({"error": reason}, status)


def _answer(catalogue: Catalogue, path: str) -> Page:
    if path == ROOT:
        server = catalogue.server(extensions=())
        return _page({"name": server.name, "version": server.version, "extensions": list(server.extensions)})
    if path == LIVE:
        return _page({"live": True})
    if path == READY:
        return readiness_page(catalogue.is_ready)
    if not path.startswith(_MODELS):
        return _unknown(path)
    match path.removeprefix(_MODELS).split("/"):
        case [name]:
            return _model(catalogue.model(unquote(name), ""))
        case [name, "ready"]:
            return readiness_page(catalogue.is_model_ready(unquote(name), ""))
        case [name, "versions", version]:
            return _model(catalogue.model(unquote(name), unquote(version)))
        case [name, "versions", version, "ready"]:
            return readiness_page(catalogue.is_model_ready(unquote(name), unquote(version)))
    return _unknown(path)


def _model(model: pb.ModelMetadataResponse) -> Page:
    return _page(
        {
            "name": model.name,
            "versions": list(model.versions),
            "platform": model.platform,
            "inputs": [_tensor(tensor) for tensor in model.inputs],
            "outputs": [_tensor(tensor) for tensor in model.outputs],
            "properties": dict(sorted(model.properties.items())),
        }
    )


def _tensor(tensor: pb.ModelMetadataResponse.TensorMetadata) -> dict[str, object]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def readiness_page(is_ready: bool) -> Page:
    """Say whether the server, or a model, takes work."""
    return _page({"ready": is_ready}, status=200 if is_ready else 503)


def _unknown(path: str) -> Page:
    return error_page(f"no page {path!r:.200} here; there are {', '.join(_KNOWN)}", 404)


def _page(content: Mapping[str, object], status: int = 200) -> Page:
    return Page(f"{json.dumps(content)}\n", status=status, content_type=_JSON)
