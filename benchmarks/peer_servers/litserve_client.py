"""A plain HTTP client for LitServe: one connection that is kept, binary both ways, no compression."""

from http.client import HTTPConnection

import numpy as np
from closed_loop import Call, run
from mix_batch import LOGITS_SHAPE, check_logits, draw_images, draw_lam, draw_partner

_BOUNDARY = "4f6c2b9a7d1e48c3"
_HEADERS = {
    "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
    # Else LitServe packs the answer with gzip, which costs more than all the rest.
    "Accept-Encoding": "identity",
}
_DEADLINE_S = 60.0


def make_caller(address: str) -> Call:
    """Connect."""
    connection = HTTPConnection(address, timeout=_DEADLINE_S)
    tensors = {"images": draw_images(), "lam": draw_lam(), "partner": draw_partner()}

    def call() -> None:
        parts = _form(tensors)
        headers = {**_HEADERS, "Content-Length": str(sum(map(len, parts)))}
        connection.request("POST", "/predict", parts, headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise ConnectionError(f"the server answered {response.status}: {body[:200]!r}")
        check_logits(np.frombuffer(body, np.float16).reshape(LOGITS_SHAPE))

    return call


def _form(tensors: dict[str, np.ndarray]) -> list[bytes | memoryview]:
    """Frame tensors as files of a form without copying them."""
    parts: list[bytes | memoryview] = []
    for name, tensor in tensors.items():
        head = (
            f"--{_BOUNDARY}\r\n"
            f'Content-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        parts += [head.encode(), memoryview(tensor.data).cast("B"), b"\r\n"]
    return [*parts, f"--{_BOUNDARY}--\r\n".encode()]


if __name__ == "__main__":
    run(make_caller)
