"""PyTriton with a constant model: Triton's own gRPC front end, a Python function behind it."""

# pyright: reportMissingImports=false
import argparse
import tempfile
from pathlib import Path

import numpy as np
from mix_batch import IMAGES_SHAPE, LOGITS_SHAPE, MODEL, NUM_IMAGES, constant_logits
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--spare-ports", type=int, nargs=2, required=True)
    flags = parser.parse_args()
    http_port, metrics_port = flags.spare_ports
    answer = {"logits": constant_logits()}
    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=flags.port,
        http_port=http_port,
        metrics_port=metrics_port,
        allow_metrics=False,
    )
    with Triton(config=config, workspace=Path(tempfile.gettempdir()) / "workspace") as triton:
        triton.bind(
            model_name=MODEL,
            infer_func=lambda requests: [answer for _ in requests],
            inputs=[
                Tensor(name="images", dtype=np.uint8, shape=IMAGES_SHAPE),
                Tensor(name="lam", dtype=np.float32, shape=(NUM_IMAGES,)),
                Tensor(name="partner", dtype=np.int64, shape=(NUM_IMAGES,)),
            ],
            outputs=[Tensor(name="logits", dtype=np.float16, shape=LOGITS_SHAPE)],
            # A request is a whole batch: grouping would only copy.
            config=ModelConfig(batching=False),
        )
        triton.serve()


if __name__ == "__main__":
    main()
