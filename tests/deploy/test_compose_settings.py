"""deploy/.env counts for the scripts as it counts for docker compose, which a script in its place stands in for."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from expressions import DEPLOY

DOCKER = """#!/bin/sh
case "$*" in
*version*) echo 2.26.1 ;;
*" up "* | "compose config") env ;;
esac
"""
ID = """#!/bin/sh
echo 1234
"""
SETTINGS = ("COMPOSE_FILE", "COMPOSE_PROFILES", "COMMIT", "SAMIX_UID", "SAMIX_GID", "SECRETS_FOLDER")
OTHERS = ("PROFILES", "OFFLINE", "TLS")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A deploy/ of nothing but scripts, on a machine whose user is 1234 and whose docker tells its environment."""
    for name in ("compose.sh", "settings.sh"):
        shutil.copy(DEPLOY / name, tmp_path / name)
    for name, text in {"docker": DOCKER, "id": ID}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def compose(folder: Path, word: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, *OTHERS)}
    inherited["PATH"] = f"{folder / 'bin'}:{inherited['PATH']}"
    return subprocess.run(
        [folder / "compose.sh", word], capture_output=True, text=True, check=False, env=inherited | environ, timeout=60
    )


def settings(run: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert run.returncode == 0, run.stderr
    return dict(re.findall(rf"^({'|'.join(SETTINGS)})=(.*)$", run.stdout, re.MULTILINE))


def test_without_settings_it_is_a_run_on_cpus_as_whoever_asks(folder: Path):
    """Containers run as the user who starts them, so that secrets and folders of this machine are theirs to read."""
    found = settings(compose(folder, "config"))

    assert (found["COMPOSE_FILE"], found["COMPOSE_PROFILES"]) == ("compose.yaml", "cpu")
    assert (found["SAMIX_UID"], found["SAMIX_GID"]) == ("1234", "1234")


def test_containers_never_run_as_root(folder: Path):
    """For root they run as the user of the images."""
    (folder / "bin/id").write_text("#!/bin/sh\necho 0\n")

    found = settings(compose(folder, "config"))

    assert (found["SAMIX_UID"], found["SAMIX_GID"]) == ("10001", "10001")


def test_settings_of_the_file_hold(folder: Path):
    """Quotes and remarks are read as docker compose reads them."""
    (folder / ".env").write_text(
        "COMPOSE_PROFILES=cpu,monitoring\n#SAMIX_UID=7\nSAMIX_UID=1000   # who owns these folders\n"
        "COMPOSE_FILE=\"compose.yaml:compose.offline.yaml\"\nSECRETS_FOLDER='./my secrets'\n"
    )

    found = settings(compose(folder, "up"))

    assert (found["COMPOSE_PROFILES"], found["SAMIX_UID"]) == ("cpu,monitoring", "1000")
    assert found["COMPOSE_FILE"] == "compose.yaml:compose.offline.yaml"
    assert (folder / "my secrets/grafana-password").stat().st_size > 20


def test_what_is_said_goes_before_the_file(folder: Path):
    """`make up PROFILES=gpu` means gpu, whatever .env says."""
    (folder / ".env").write_text("COMPOSE_PROFILES=cpu,monitoring\nSAMIX_UID=1000\n")

    found = settings(compose(folder, "config", PROFILES="gpu", SAMIX_UID="2000"))

    assert (found["COMPOSE_PROFILES"], found["SAMIX_UID"]) == ("gpu", "2000")


def test_tls_is_added_to_the_files_that_were_chosen(folder: Path):
    """TLS=1 is never lost because .env names files, and not added twice."""
    (folder / "secrets/mixer").mkdir(parents=True)
    (folder / "secrets/mixer/server.pem").touch()
    (folder / ".env").write_text("COMPOSE_FILE=compose.yaml:compose.offline.yaml\n")

    once = settings(compose(folder, "up", TLS="1"))
    twice = settings(compose(folder, "up", TLS="1", COMPOSE_FILE=once["COMPOSE_FILE"]))

    assert once["COMPOSE_FILE"] == "compose.yaml:compose.offline.yaml:compose.tls.yaml"
    assert twice["COMPOSE_FILE"] == once["COMPOSE_FILE"]


@pytest.mark.parametrize("environ", [{"TLS": "1"}, {"COMPOSE_FILE": "compose.yaml:compose.tls.yaml"}])
def test_missing_certificates_are_named(folder: Path, environ: dict[str, str]):
    """However TLS was asked for, nothing starts before `make secrets`; what runs can be stopped all the same."""
    refused, stopped = (compose(folder, word, **environ) for word in ("up", "down"))

    assert (refused.returncode, stopped.returncode) == (1, 0)
    assert "there are no certificates in ./secrets; run make secrets first" in refused.stderr
