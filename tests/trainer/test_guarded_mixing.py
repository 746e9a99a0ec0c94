"""Programs of the trainer's side with a guarded server: a run, a picture, and what they say if they may not."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from certificates import DAY, MIX, READ, Site, now
from PIL import Image
from serving import serve, tiny_mixer
from training import ALONE, NUM_CLASSES, SIDE, make_batch

from mixer_server.app import MixerServer
from samix.errors import ConfigError
from samix.mixing.presets import TINY_RESNET
from services.config import parse_recipe
from services.security.authority import issue_server
from trainer.metrics import TrainerMetrics
from trainer.mix import main as mix
from trainer.mixing import MixingConfig, open_mixing
from trainer.model import ModelConfig, build_classifier
from trainer.prefetch import RemoteMixing
from trainer.recipes import RECIPES

LONG_S = 600.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def guarded(site: Site) -> Iterator[MixerServer]:
    with serve(tiny_mixer(), security=site.security(has_tokens=True)) as server:
        yield server


def open_and_mix(config: MixingConfig) -> tuple[type, float]:
    """Open the mixing of a config and mix a batch; says which kind it is, and how many batches fell back."""
    metrics = TrainerMetrics(0)
    classifier = build_classifier(ModelConfig(backbone=TINY_RESNET), NUM_CLASSES, seed=0)
    with open_mixing(
        config, seed=0, image_size=SIDE, batch_size=4, world=ALONE, metrics=metrics, classifier=classifier
    ) as mixing:
        assert len(list(mixing.epoch(0, [make_batch()]))) == 1
        return type(mixing), metrics.registry.get_sample_value("mixer_client_fallback_total", {}) or 0.0


def test_a_run_mixes_remotely(guarded: MixerServer, site: Site):
    """A run that trusts the server and has a token is served, without a fallback."""
    config = MixingConfig(
        endpoint=guarded.addresses["grpc"], tls_ca=str(site.ca), token_file=str(site.token_file(MIX)), deadline_s=60.0
    )

    assert open_and_mix(config) == (RemoteMixing, 0.0)


@pytest.mark.parametrize("secret", ["", READ])
def test_a_run_without_a_token_does_not_start(guarded: MixerServer, site: Site, secret: str):
    """A run that the server refuses ends at once, with the flag to set, instead of falling back for ever."""
    token_file = str(site.token_file(secret)) if secret else ""
    config = MixingConfig(
        endpoint=guarded.addresses["grpc"], tls_ca=str(site.ca), token_file=token_file, startup_timeout_s=LONG_S
    )

    with pytest.raises(ConfigError, match=r"set --mixing\.token-file"):
        open_and_mix(config)


def test_a_run_does_not_wait_for_a_server_that_it_does_not_trust(site: Site):
    """A certificate that has expired is told at once, and not waited for."""
    expired = issue_server(site.authority, ["localhost"], now() - 2 * DAY, DAY)
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(expired.key_pem, expired.certificate_pem)])
    port = server.add_secure_port("localhost:0", credentials)
    server.start()
    config = MixingConfig(endpoint=f"localhost:{port}", tls_ca=str(site.ca), startup_timeout_s=LONG_S)

    started_s = time.monotonic()
    try:
        with pytest.raises(ConfigError, match="its certificate has expired; renew it there"):
            open_and_mix(config)
    finally:
        server.stop(None).wait()

    assert time.monotonic() - started_s < LONG_S / 2


def test_flags_of_a_run():
    """Recipes take the files as flags and as variables."""
    name = next(iter(RECIPES))
    usual = [name, "--data.train", "x", "--data.val", "x"]
    _, by_flags = parse_recipe(RECIPES, "train", [*usual, "--mixing.tls-ca", "ca.pem", "--mixing.token-file", "t"])
    environ = {"SAMIX_TRAIN_MIXING_TLS_CA": "ca.pem", "SAMIX_TRAIN_MIXING_TOKEN_FILE": "t"}
    _, by_variables = parse_recipe(RECIPES, "train", usual, environ=environ)

    assert by_flags == by_variables
    assert (by_flags.mixing.tls_ca, by_flags.mixing.token_file) == ("ca.pem", "t")


def test_a_picture_of_a_guarded_server(
    guarded: MixerServer, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """`samix mix --connect` takes the same flags, and without a token says what is missing."""
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / name)
    usual = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--connect", guarded.addresses["grpc"], "--no-compare"]
    out = ["--out", str(tmp_path / "out.png"), "--tls-ca", str(site.ca)]

    assert mix([*usual, *out]) != 0
    assert "needs a token, and none came" in capsys.readouterr().err
    assert mix([*usual, *out, "--token-file", str(site.token_file(MIX))]) == 0
    assert (tmp_path / "out.png").is_file()
