"""What docs/clients.md shows works: its grpcurl lines, replayed by reflection, and by grpcurl where it is installed."""

import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpcurl import Reflected, recorded
from PIL import Image
from serving import serve

from mixer_server.app import MixerServer
from samix import load_mixer

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/clients.md").read_text(), re.DOTALL)
EXAMPLES = "".join(block for block in BLOCKS if "grpcurl" in block)
MIX, STREAM = "samix.mixer.v1.MixerService/Mix", "samix.mixer.v1.MixerService/MixStream"


@pytest.fixture(scope="module")
def shipped() -> Iterator[MixerServer]:
    with serve(*(load_mixer(path) for path in sorted((ROOT / "mixers").glob("*.safetensors")))) as running:
        yield running


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """A folder with the two files that the examples name."""
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def test_every_example_works_by_reflection(shipped: MixerServer, jpegs: Path):
    """Each grpcurl line of the page finds its method and message by reflection, and its JSON gets a good answer."""
    answers: dict[str, list[Any]] = {}

    with grpc.insecure_channel(shipped.addresses["grpc"]) as channel:
        reflected = Reflected(channel)
        for arguments in recorded(EXAMPLES, jpegs):
            assert "localhost:8001" in arguments
            answers.setdefault(arguments[-1], []).append(reflected.run(arguments))

    assert {"samix.mixer.v1.MixerService", "grpc.health.v1.Health"} <= set(answers["list"][0])
    assert [health["status"] for (health,) in answers["grpc.health.v1.Health/Check"]] == ["SERVING"] * 2
    ((listed,),) = answers["samix.mixer.v1.MixerService/ListMixers"]
    assert [mixer["imageSize"] for mixer in listed["mixers"]] == [32, 16]
    ((mixed,), (masked,)) = answers[MIX]
    assert len(base64.b64decode(mixed["pixels"])) == 2 * 3 * 16 * 16
    assert masked["maskShape"] == [2, 1, 8, 8]
    ((terms, first, second),) = answers[STREAM]
    assert terms["terms"]["credits"] > 0
    assert (first["sequence"], first["response"]["mixer"]) == ("1", "samix-digits-r10")
    assert second["refusal"]["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert second["refusal"]["fieldViolations"][0]["field"] == "pixels"


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="needs grpcurl")
def test_every_example_works_with_grpcurl(shipped: MixerServer, jpegs: Path):
    """The blocks of the page run as they stand."""
    script = "set -euo pipefail\n" + EXAMPLES.replace("localhost:8001", shipped.addresses["grpc"])

    ran = subprocess.run(["bash", "-c", script], cwd=jpegs, capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 0, ran.stderr
    assert '"status": "SERVING"' in ran.stdout
    assert '"refusal"' in ran.stdout
