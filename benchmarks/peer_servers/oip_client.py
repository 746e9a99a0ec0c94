"""Stock tritonclient over gRPC, for the servers that speak the Open Inference Protocol: PyTriton and KServe."""

# pyright: reportMissingImports=false
import numpy as np
import tritonclient.grpc as oip
from closed_loop import Call, run
from mix_batch import MODEL, check_logits, draw_images, draw_lam, draw_partner


def make_caller(address: str) -> Call:
    """Connect; the tensors travel raw, and are put into the request anew for each batch, as a trainer's would be."""
    client = oip.InferenceServerClient(address)
    tensors = {"images": draw_images(), "lam": draw_lam(), "partner": draw_partner()}
    datatypes = {"images": "UINT8", "lam": "FP32", "partner": "INT64"}
    outputs = [oip.InferRequestedOutput("logits")]

    def call() -> None:
        inputs = []
        for name, tensor in tensors.items():
            inputs.append(oip.InferInput(name, list(tensor.shape), datatypes[name]))
            inputs[-1].set_data_from_numpy(tensor)
        answer = client.infer(MODEL, inputs, outputs=outputs)
        assert answer is not None
        check_logits(np.asarray(answer.as_numpy("logits")))

    return call


if __name__ == "__main__":
    run(make_caller)
