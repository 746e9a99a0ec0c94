"""Clients that know nothing but the .proto: generated in Python, loaded in Node, or asked for by reflection."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from serving import ask, connect, random_call

from mixer_server.app import MixerServer

ROOT = Path(__file__).parents[2]
PROTO = "samix/mixer/v1/mixer.proto"
INSTALL_S = 110

STRANGER = """
import sys
import grpc
from samix.mixer.v1 import mixer_pb2 as pb, mixer_pb2_grpc
assert "samix.framing" not in sys.modules and "torch" not in sys.modules
request = pb.MixRequest(reply_format=1, pixel_format=1, shape=[2, 3, 32, 32], lam=[.25, .75], partner=[1, 0],
                        pixels=bytes(i * 37 % 256 for i in range(2 * 3 * 32 * 32)))
with grpc.insecure_channel(sys.argv[1]) as channel:
    print(mixer_pb2_grpc.MixerServiceStub(channel).Mix(request, timeout=20).mask_logits.hex())
"""


def striped_logits(server: MixerServer) -> bytes:
    """Ask our own way for what the strangers ask."""
    pixels = (np.arange(2 * 3 * 32 * 32) * 37 % 256).astype(np.uint8).reshape(2, 3, 32, 32)
    call = random_call(2, pixels=pixels, lam=np.array([0.25, 0.75], np.float32), partner=np.array([1, 0]))
    with connect(server.addresses["grpc"]) as stub:
        return ask(stub, call).mask_logits.tobytes()


def test_client_generated_from_the_proto(server: MixerServer, tmp_path: Path):
    """Code generated elsewhere, without our library, gets the same logits."""
    generate = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"--python_out={tmp_path}"]
    subprocess.run([*generate, f"--grpc_python_out={tmp_path}", PROTO], check=True, timeout=60)
    (tmp_path / "stranger.py").write_text(STRANGER)

    stranger = subprocess.run(
        [sys.executable, "stranger.py", server.addresses["grpc"]],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert stranger.returncode == 0, stranger.stderr
    assert bytes.fromhex(stranger.stdout.strip()) == striped_logits(server)


def test_reflection_tells_the_contract(server: MixerServer):
    """A tool that asks by reflection finds the services, and the messages of MixerService."""
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        reflected = ProtoReflectionDescriptorDatabase(channel)
        services = set(reflected.get_services())
        described = reflected.FindFileContainingSymbol("samix.mixer.v1.MixerService")

    assert {"samix.mixer.v1.MixerService", "grpc.health.v1.Health"} <= services
    assert [method.name for method in described.service[0].method] == ["Mix", "MixStream", "ListMixers", "GetMixer"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node and npm")
@pytest.mark.timeout(180)
def test_client_in_node(server: MixerServer, tmp_path: Path):
    """@grpc/grpc-js, which loads the .proto, gets the same logits by a unary call and over a stream."""
    install = ["npm", "install", "--no-audit", "--no-fund", "@grpc/grpc-js@1", "@grpc/proto-loader@0.8"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=INSTALL_S)
    script = [ROOT / "tests/node/mix.mjs", ROOT / "protos" / PROTO, server.addresses["grpc"]]

    ran = subprocess.run(["node", *script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    expected = striped_logits(server)
    assert answer["mixers"] == ["tiny"]
    assert base64.b64decode(answer["logits"]) == expected
    assert [base64.b64decode(logits) for logits in answer["streamed"]] == [expected] * 2
    assert answer["images"] == answer["streamed_images"][0] == 2 * 3 * 32 * 32
    assert answer["refused"][0] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "pixels must be 6144 bytes" in answer["refused"][1]
