"""Ray Serve with a constant model behind its gRPC ingress."""

# pyright: reportMissingImports=false
import argparse
import signal
import tempfile
from pathlib import Path

import numpy as np
import ray
from mix_batch import IMAGES_SHAPE, constant_logits
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import LoggingConfig
from ray_proto import MixReply, MixRequest


class ConstantModel:
    """Answers every batch alike."""

    def __init__(self) -> None:
        self._reply = MixReply(logits=constant_logits().tobytes())

    async def Mix(self, request: MixRequest) -> MixReply:  # noqa: N802, the method's name on the wire
        """View the tensors, answer."""
        np.frombuffer(request.images, np.uint8).reshape(IMAGES_SHAPE)
        np.frombuffer(request.lam, np.float32)
        np.frombuffer(request.partner, np.int64)
        return self._reply


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--spare-ports", type=int, nargs=2, required=True)
    flags = parser.parse_args()
    http_port, _ = flags.spare_ports
    # Ray counts these, it binds nothing to them: controller, proxy and replica share the core they were started on.
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=256 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
        _temp_dir=tempfile.gettempdir(),
    )
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=http_port),
        grpc_options=gRPCOptions(port=flags.port, grpc_servicer_functions=["ray_proto.add_servicer"]),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    deployment = serve.deployment(ConstantModel, max_ongoing_requests=64)
    serve.run(deployment.bind(), name="mixer", route_prefix="/mixer")
    signal.sigwait([signal.SIGTERM])
    ray.shutdown()


if __name__ == "__main__":
    main()
