"""A plain gRPC client for Ray Serve, with protobuf messages as its documentation shows."""

# pyright: reportMissingImports=false
import grpc
import numpy as np
from closed_loop import Call, run
from mix_batch import LOGITS_SHAPE, check_logits, draw_images, draw_lam, draw_partner
from ray_proto import MIX, MixReply, MixRequest

_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
_METADATA = (("application", "mixer"),)
_DEADLINE_S = 60.0


def make_caller(address: str) -> Call:
    """Connect."""
    channel = grpc.insecure_channel(address, options=_OPTIONS)
    mix = channel.unary_unary(
        MIX, request_serializer=MixRequest.SerializeToString, response_deserializer=MixReply.FromString
    )
    images, lam, partner = draw_images(), draw_lam(), draw_partner()

    def call() -> None:
        request = MixRequest(lam=lam.tobytes(), partner=partner.tobytes(), images=images.tobytes())
        reply = mix(request, timeout=_DEADLINE_S, metadata=_METADATA)
        check_logits(np.frombuffer(reply.logits, np.float16).reshape(LOGITS_SHAPE))

    return call


if __name__ == "__main__":
    run(make_caller)
