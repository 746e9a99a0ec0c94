"""LitServe with a constant model: tensors come as files of a form, logits leave as bytes.

A raw body instead of a form, declared as `bytes`, was tried: three times slower.
"""

# pyright: reportMissingImports=false
import argparse

import litserve
import numpy as np
from fastapi import Request, Response
from mix_batch import IMAGES_SHAPE, constant_logits

_DTYPES = {"images": np.uint8, "lam": np.float32, "partner": np.int64}


class ConstantApi(litserve.LitAPI):
    """Answers every batch alike."""

    def setup(self, device: str) -> None:  # noqa: ARG002, the interface's
        """Prepare the answer."""
        self._answer = constant_logits().tobytes()

    def decode_request(self, request: Request) -> dict[str, np.ndarray]:
        """View the tensors; what comes is the form, whatever the annotation says."""
        tensors = {name: np.frombuffer(request[name].file.read(), dtype) for name, dtype in _DTYPES.items()}
        return {**tensors, "images": tensors["images"].reshape(IMAGES_SHAPE)}

    def predict(self, x: dict[str, np.ndarray]) -> bytes:  # noqa: ARG002, the answer is always the same
        """Answer."""
        return self._answer

    def encode_response(self, output: bytes) -> Response:
        """Send bytes rather than JSON."""
        return Response(output, media_type="application/octet-stream")


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--spare-ports", type=int, nargs=2, required=True)
    flags = parser.parse_args()
    # The fast queue, ZeroMQ instead of pipes, is its own advice for load.
    server = litserve.LitServer(ConstantApi(), accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=flags.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
