"""Clients that know nothing but the .proto: generated in Python, loaded in Node, or asked for by reflection."""

import base64
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from PIL import Image
from serving import ask, connect, random_call

import samix
from mixer_server.app import MixerServer
from samix.mixing.batch import MixedBatch

ROOT = Path(__file__).parents[2]
PROTO = "samix/mixer/v1/mixer.proto"
INSTALL_S = 110
UNREACHABLE = "ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|EHOSTUNREACH|ETIMEDOUT|ERR_SOCKET_TIMEOUT"
"""Codes by which npm says that it cannot reach its registry."""

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that our wheel unpacks to."""
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    """Run a program to its good end, and return what it printed."""
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_S, env=environ or None)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_client_generated_from_an_installation(server: MixerServer, wheel: Path, tmp_path: Path):
    """`samix protos` of an installed wheel writes all .proto files; code generated from them gets the same logits."""
    copy = "import sys; from samix.contract import main; sys.exit(main(['--out', 'protos']))"
    python = [sys.executable, "-P"]

    copied = run(*python, "-c", copy, cwd=tmp_path, PYTHONPATH=str(wheel)).split()
    generate = [*python, "-m", "grpc_tools.protoc", "-Iprotos", "--python_out=.", "--grpc_python_out=.", *copied]
    run(*generate, cwd=tmp_path)
    (tmp_path / "stranger.py").write_text(STRANGER)
    logits = run(sys.executable, "stranger.py", server.addresses["grpc"], cwd=tmp_path)

    ours = [path.relative_to(ROOT / "protos") for path in sorted((ROOT / "protos").rglob("*.proto"))]
    assert [Path(path).relative_to("protos") for path in copied] == ours
    assert bytes.fromhex(logits.strip()) == striped_logits(server)


def test_an_installation_has_a_mixer_for_a_first_look(wheel: Path):
    """The wheel holds the mixer that `samix mix` takes by itself, where it looks for it."""
    find = "from trainer.shipped import shipped_mixer; print(shipped_mixer())"

    found = Path(run(sys.executable, "-P", "-c", find, cwd=wheel, PYTHONPATH=str(wheel)).strip())

    assert found.is_relative_to(wheel)
    assert found.read_bytes() == (ROOT / "mixers" / found.name).read_bytes()


def test_the_source_distribution_has_the_examples(tmp_path: Path):
    """It holds the examples as they are written, in Python and in TypeScript, and nothing that npm made beside them."""
    ignored = shutil.ignore_patterns("node_modules", "dist", "generated", "__pycache__")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=ignored)
    written = {str(path.relative_to(tmp_path)) for path in (tmp_path / "examples").rglob("*") if path.is_file()}
    for made in ("node_modules/sharp/index.js", "dist/main.js", "src/generated/mixer.ts"):
        path = tmp_path / "examples/node" / made
        path.parent.mkdir(parents=True)
        path.touch()

    (built,) = SdistBuilder(str(tmp_path)).build(directory=str(tmp_path / "built"), versions=["standard"])

    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert "examples/node/src/main.ts" in written
    assert {name for name in names if name.startswith("examples/")} == written


def test_reflection_tells_the_contract(server: MixerServer):
    """A tool that asks by reflection finds the services, and the messages of MixerService."""
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        reflected = ProtoReflectionDescriptorDatabase(channel)
        services = set(reflected.get_services())
        described = reflected.FindFileContainingSymbol("samix.mixer.v1.MixerService")

    assert {"samix.mixer.v1.MixerService", "grpc.health.v1.Health"} <= services
    assert [method.name for method in described.service[0].method] == ["Mix", "MixStream", "ListMixers", "GetMixer"]


needs_node = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node and npm")


@pytest.fixture(scope="module")
def node_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example in TypeScript, installed from its lock file and built."""
    root = tmp_path_factory.mktemp("node")
    (root / "protos").symlink_to(ROOT / "protos")
    folder = root / "examples/node"
    ignored = shutil.ignore_patterns("node_modules", "dist", "generated")
    shutil.copytree(ROOT / "examples/node", folder, ignore=ignored)
    install_node_packages(folder)
    run("npm", "run", "build", cwd=folder)
    return folder


def install_node_packages(folder: Path) -> None:
    """Install what the lock file names; skips where the registry of npm is out of reach, and fails otherwise."""
    patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=1000"]
    command = ["npm", "ci", "--no-audit", "--no-fund", "--prefer-offline", *patience]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if unreachable := re.search(rf"code ({UNREACHABLE})", ran.stderr):
        pytest.skip(f"npm cannot reach its registry ({unreachable[1]}), and has not all packages in its cache")
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture
def pair(tmp_path: Path) -> torch.Tensor:
    """Two pictures of 32 px, uint8 [2, 3, 32, 32], which also lie in the folder as a.png and b.png."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for name, picture in zip(("a.png", "b.png"), pictures, strict=True):
        Image.fromarray(picture).save(tmp_path / name)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def mixed_by_us(server: MixerServer, pair: torch.Tensor, lam: float) -> MixedBatch:
    with samix.connect(server.addresses["grpc"]) as mixer:
        return mixer.mix(pair, lam=lam, partner=torch.tensor([1, 0]))


@pytest.mark.slow
@needs_node
@pytest.mark.timeout(240)
@pytest.mark.parametrize("lam", [0.4, 0.05])
def test_example_in_node(server: MixerServer, node_example: Path, pair: torch.Tensor, tmp_path: Path, lam: float):
    """The example in TypeScript lists the mixers and writes the mix and the mask that our own client makes, as PNG."""
    program = ["node", "dist/main.js", server.addresses["grpc"], tmp_path / "a.png", tmp_path / "b.png"]
    flags = ["--lam", str(lam), "--out", tmp_path / "mixed.png", "--mask", tmp_path / "mask.png"]

    printed = subprocess.run(
        [*program, *flags], cwd=node_example, capture_output=True, text=True, timeout=60, check=True
    ).stdout

    assert printed.startswith("tiny ")
    expected = mixed_by_us(server, pair, lam)
    for name, image in (("mixed.png", expected.images[0].permute(1, 2, 0)), ("mask.png", expected.masks[0, 0])):
        pixels = np.asarray(Image.open(tmp_path / name)).astype(float)
        assert pixels.shape == tuple(image.shape)
        assert np.abs(pixels - 255 * image.numpy()).max() < 0.6


@pytest.mark.slow
@needs_node
@pytest.mark.timeout(240)
def test_example_in_node_says_what_is_wrong(
    server: MixerServer, node_example: Path, pair: torch.Tensor, tmp_path: Path
):
    """A refusal of the server is one sentence, and exit status 1."""
    program = ["node", "dist/main.js", server.addresses["grpc"], tmp_path / "a.png", tmp_path / "b.png"]

    ran = subprocess.run(
        [*program, "--lam", "1.5"], cwd=node_example, capture_output=True, text=True, timeout=60, check=False
    )

    assert ran.returncode == 1
    assert ran.stderr == "error: lam must lie in [0, 1], got 1.5\n"


@pytest.mark.slow
@needs_node
@pytest.mark.timeout(240)
def test_client_in_node(server: MixerServer, node_example: Path):
    """@grpc/grpc-js, which loads the .proto, gets the same logits by a unary call and over a stream."""
    script = [ROOT / "tests/node/mix.mjs", ROOT / "protos" / PROTO, server.addresses["grpc"]]

    ran = subprocess.run(["node", *script], cwd=node_example, capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    expected = striped_logits(server)
    assert answer["mixers"] == ["tiny"]
    assert base64.b64decode(answer["logits"]) == expected
    assert [base64.b64decode(logits) for logits in answer["streamed"]] == [expected] * 2
    assert answer["images"] == answer["streamed_images"][0] == 2 * 3 * 32 * 32
    assert answer["refused"][0] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "pixels must be 6144 bytes" in answer["refused"][1]
