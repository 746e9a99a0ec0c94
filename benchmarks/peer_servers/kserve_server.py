"""KServe's Python runtime with a constant model, over the Open Inference Protocol."""

# pyright: reportMissingImports=false
import argparse

import kserve
from mix_batch import LOGITS_SHAPE, MODEL, constant_logits


class ConstantModel(kserve.Model):
    """Answers every batch alike."""

    def __init__(self) -> None:
        super().__init__(MODEL)
        self._logits = constant_logits()

    def load(self) -> bool:
        """Be ready."""
        self.ready = True
        return True

    async def predict(
        self,
        payload: kserve.InferRequest,
        headers: object = None,  # noqa: ARG002, the interface's
        response_headers: object = None,  # noqa: ARG002
    ) -> kserve.InferResponse:
        """Decode the tensors, which views them, and answer."""
        for tensor in payload.inputs:
            tensor.as_numpy()
        logits = kserve.InferOutput("logits", list(LOGITS_SHAPE), "FP16")
        logits.set_data_from_numpy(self._logits)
        return kserve.InferResponse(payload.id, MODEL, [logits])


def main() -> None:
    """Serve until a signal ends it; what is not said here KServe reads from the command line itself."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--spare-ports", type=int, nargs=2, required=True)
    flags, _ = parser.parse_known_args()
    model = ConstantModel()
    model.load()
    kserve.ModelServer(
        grpc_port=flags.port,
        http_port=flags.spare_ports[0],
    ).start([model])


if __name__ == "__main__":
    main()
