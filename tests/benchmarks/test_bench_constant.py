import numpy as np
import pytest
from serving import ask, connect, random_call, tiny_mixer

from benchmarks.constant import ConstantPasses
from mixer_server.app import MixerServer
from mixer_server.config import ServerConfig
from mixer_server.hosting.registry import Registry


@pytest.mark.parametrize("image_dtype", [np.uint8, np.float16])
def test_a_constant_server_answers_as_a_real_one(image_dtype: type):
    """A server with constant passes answers masks and images of the right shape and type, whatever it is sent."""
    config = ServerConfig(mixers=(), grpc_port=0, http_port=0, metrics_port=0)
    server = MixerServer(config, Registry([tiny_mixer()]), ConstantPasses())
    server.start()
    try:
        with connect(server.addresses["grpc"]) as stub:
            reply = ask(stub, random_call(3, wants_images=True, image_dtype=np.dtype(image_dtype)))
    finally:
        server.stop()

    assert reply.mask_logits.shape == (3, 1, 8, 8)
    assert reply.images is not None
    assert (reply.images.shape, reply.images.dtype) == ((3, 3, 32, 32), image_dtype)
