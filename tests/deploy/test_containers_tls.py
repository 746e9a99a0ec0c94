"""`make secrets` and `make up TLS=1` on a real engine: nobody gets in without a certificate, and all of ours do."""

import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_server import Prometheus
from stack import Stack, running_stack, wait_for

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("docker") is None, reason="needs docker"),
]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def stack(secrets: Path) -> Iterator[Stack]:
    files = ["compose.yaml", "compose.offline.yaml", "compose.tls.yaml"]
    with running_stack("tls", files, "cpu,monitoring", secrets) as running:
        yield running


def health(stack: Stack, secrets: Path, *, has_certificate: bool) -> subprocess.CompletedProcess[str]:
    files = {"CA": "ca.pem", "CERT": "client.pem", "KEY": "client.key"}
    environ = {f"SAMIX_TLS_{name}": str(secrets / "trainer" / file) for name, file in files.items()}
    address = f"localhost:{stack.port('mixer', 8001)}"
    return subprocess.run(
        [sys.executable, "-m", "samix.cli", "health", address],
        capture_output=True,
        text=True,
        check=False,
        env=stack.environ | (environ if has_certificate else {}),
    )


def certificate_of_mixer(stack: Stack) -> str:
    return ssl.get_server_certificate(("127.0.0.1", stack.port("mixer", 8000)))


def test_programs_reach_each_other(stack: Stack):
    """The run trains on batches of the server, and Prometheus reads the pages of both."""
    prometheus = Prometheus(stack.port("prometheus", 9090))

    wait_for(lambda: prometheus.value('count(up{job="samix-trainer"} == 1)') == 2)
    wait_for(lambda: prometheus.value('up{job="samix-mixer"}') == 1)
    wait_for(lambda: prometheus.value("min(mixer_client_wait_seconds_count)") > 0)
    assert prometheus.value("max(mixer_client_fallback_total)") == 0
    assert prometheus.value("min(mixer_certificate_expiry_timestamp_seconds - time())") > 300 * 86_400


def test_a_stranger_gets_no_answer(stack: Stack, secrets: Path):
    """Plain text is refused; the certificate of a trainer opens the port."""
    stranger, trainer = (health(stack, secrets, has_certificate=has) for has in (False, True))

    assert (stranger.returncode, trainer.returncode) == (1, 0), stranger.stdout + trainer.stdout
    assert "does it want TLS" in stranger.stdout


def test_certificates_are_renewed_without_a_restart(stack: Stack):
    """After another `make secrets` the same container shows another certificate."""
    before = certificate_of_mixer(stack)

    stack.make("secrets")

    wait_for(lambda: certificate_of_mixer(stack) != before)
    assert stack.container("mixer")["RestartCount"] == 0
