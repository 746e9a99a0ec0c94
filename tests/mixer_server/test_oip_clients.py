"""Stock clients of the Open Inference Protocol against a real server, beside our own client."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import random_call
from torchvision.io import encode_jpeg

import samix
from mixer_server.app import MixerServer
from samix.client.config import Exchange
from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import SAMIX_ALPHA, draw_plan, generator_for

SCRIPT = Path(__file__).parents[1] / "helpers/triton_client.py"
CALL = random_call()
QUALITY = 90


@dataclass(frozen=True)
class Told:
    """What a client was told."""

    facts: dict[str, Any]
    """Health, descriptions, refusals, statistics."""
    answers: dict[str, np.ndarray]
    """Tensors, by the kind of request and their name."""


@pytest.fixture(scope="module", params=["sync", "aio"])
def told(server: MixerServer, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("triton")
    assert isinstance(CALL.pixels, np.ndarray)
    pictures = [picture.numpy().tobytes() for picture in encode_jpeg(list(torch.from_numpy(CALL.pixels)), QUALITY)]
    jpeg = np.array(pictures, "S")  # which loses zeros at an end, and JPEGs have none
    np.savez(folder / "call.npz", images=CALL.pixels, lam=CALL.lam, index=CALL.partner.astype(np.int32), jpeg=jpeg)
    command = [sys.executable, "-W", "error", SCRIPT, request.param, server.addresses["grpc"], folder]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return Told(json.loads((folder / "facts.json").read_text()), dict(np.load(folder / "answers.npz")))


def test_tritonclient_lists_and_describes(told: Told, mixer: FrozenMixer):
    """tritonclient finds server and model ready, lists the model, and reads its description and configuration."""
    facts = told.facts

    assert (facts["live"], facts["ready"], facts["model_ready"]) == (True, True, True)
    assert facts["server"]["extensions"] == ["model_configuration", "statistics"]
    assert facts["index"]["models"] == [{"name": "tiny", "version": mixer.version, "state": "READY"}]
    assert facts["model"]["versions"] == [mixer.version]
    assert [tensor["name"] for tensor in facts["model"]["inputs"]] == ["images", "jpeg", "lam", "index"]
    assert [tensor["data_type"] for tensor in facts["config"]["config"]["input"]] == [
        *("TYPE_UINT8", "TYPE_STRING", "TYPE_FP32", "TYPE_INT32")
    ]


def test_tritonclient_gets_what_our_client_gets(told: Told, server: MixerServer):
    """Answers to the same requests are those of `samix.connect`, bit for bit."""
    images = torch.from_numpy(CALL.pixels)
    whole = MixPlan(lam=torch.from_numpy(CALL.lam), partner=torch.from_numpy(CALL.partner))
    drawn = draw_plan(4, alpha=SAMIX_ALPHA, generator=generator_for(7))
    pixels, jpegs = (Exchange(encoding=encoding, jpeg_quality=QUALITY) for encoding in ("raw", "jpeg"))
    with samix.connect(server.addresses["grpc"], mixer="tiny") as remote:
        asked = {"whole": (whole, pixels), "seeded": (drawn, pixels), "jpeg": (whole, jpegs)}
        logits = {
            kind: remote.submit(images, plan=plan, exchange=exchange).reply().mask_logits
            for kind, (plan, exchange) in asked.items()
        }
    with samix.connect(server.addresses["grpc"], mixer="tiny", reply="images") as remote:
        mixed = remote.mix(images, seed=7).images

    assert told.facts["ids"] == ["7", "", ""]
    for kind, expected in logits.items():
        assert np.array_equal(told.answers[f"{kind}/mask_logits"].view(np.uint16), expected.view(np.uint16))
    assert np.array_equal(told.answers["seeded/mixed"], mixed.mul(255).round().byte().numpy())
    assert np.array_equal(told.answers["seeded/lam"], drawn.lam.numpy())
    assert np.array_equal(told.answers["seeded/index"], drawn.partner.numpy())


@pytest.mark.parametrize(
    ("kind", "code", "sentence"),
    [
        ("ghost", "NOT_FOUND", "no mixer is called 'ghost' here; this server hosts 'tiny'"),
        ("version", "NOT_FOUND", "not '1'; leave the version empty to take the newest"),
        ("size", "INVALID_ARGUMENT", "images: must be 49152 bytes for UINT8 [4, 3, 64, 64], got 12288"),
        ("missing", "INVALID_ARGUMENT", "index did not come; send all, or the parameter seed to draw by"),
        ("input", "INVALID_ARGUMENT", "'mask' is unknown; there are images, jpeg, lam, index"),
        ("output", "INVALID_ARGUMENT", "'masks' is unknown; there are mask_logits, mixed, lam, index"),
        ("parameter", "INVALID_ARGUMENT", "parameter 'x' is unknown; there are seed and upsample"),
        ("shared", "INVALID_ARGUMENT", "must hold the bytes of each of 3 inputs, got 2; send all inputs raw"),
    ],
)
def test_tritonclient_is_told_what_is_wrong(told: Told, kind: str, code: str, sentence: str):
    """A malformed request raises tritonclient's own error, with the status and what to do."""
    status, message = told.facts["refusals"][kind]

    assert status == f"StatusCode.{code}"
    assert sentence in message


def test_tritonclient_reads_statistics(told: Told):
    """What it asked for is counted: of the model that was named, what was answered and what was refused."""
    (stats,) = told.facts["statistics"]["model_stats"]

    assert int(stats["inference_count"]) >= 12
    assert int(stats["inference_stats"]["success"]["count"]) >= 3
    assert int(stats["inference_stats"]["fail"]["count"]) >= 6
    assert int(stats["inference_stats"]["compute_infer"]["ns"]) > 0
