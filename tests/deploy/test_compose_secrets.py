"""What `make secrets` asks `samix certs` for, whom it hands what; a script in the place of docker makes the files."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from expressions import DEPLOY

DOCKER = """#!/bin/sh
[ "$1" = run ] || exit 0
echo "$*" >>"$(dirname "$0")/calls"
while [ "$1" != --volume ]; do shift; done
for name in ca.key ca.pem client.key client.pem server.key server.pem; do
    echo "$name" >"${2%%:*}/$name"
done
"""
ID = """#!/bin/sh
echo 1234
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A deploy/ of nothing but scripts."""
    for name in ("secrets.sh", "settings.sh"):
        shutil.copy(DEPLOY / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for name, text in {"docker": DOCKER, "id": ID}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def make_secrets(folder: Path, **environ: str) -> list[str]:
    """Run it; returns the words of its last call of `samix certs`."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("SAMIX_", "SECRETS", "IMAGE"))
    }
    inherited["PATH"] = f"{folder / 'bin'}:{inherited['PATH']}"
    subprocess.run([folder / "secrets.sh"], capture_output=True, check=True, env=inherited | environ, timeout=60)
    return (folder / "bin/calls").read_text().splitlines()[-1].partition(" certs ")[2].split()


def test_each_program_gets_what_it_needs_and_no_more(folder: Path):
    """The authority's key stays where it is, and each token is with its holder and in the server's list."""
    make_secrets(folder)

    secrets = folder / "secrets"
    files = {program.name: {file.name for file in program.iterdir()} for program in secrets.iterdir()}
    own = {"ca.pem", "client.pem", "client.key"}
    assert files["trainer"] == files["prometheus"] == own | {"token"}
    assert files["mixer"] == own | {"server.pem", "server.key", "tokens"}
    prometheus = (secrets / "prometheus/token").read_text()
    assert (secrets / "mixer/tokens").read_text() == f"read prometheus {prometheus}" + (
        secrets / "trainer/token"
    ).read_text()


def test_nobody_else_reads_them(folder: Path):
    """The folder is closed, and so are the keys in it but for Prometheus's, whose container runs as another user."""
    make_secrets(folder)

    secrets = folder / "secrets"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    for file in (*secrets.glob("mixer/*"), *secrets.glob("trainer/*"), *secrets.glob("authority/*")):
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_the_next_time_renews_and_keeps_tokens_and_names(folder: Path):
    """Without NAMES a certificate keeps those it has; with them it gets them beside the names of the containers."""
    first = make_secrets(folder, NAMES="mixer.example.org 192.0.2.7")
    tokens = (folder / "secrets/mixer/tokens").read_text()
    second = make_secrets(folder)
    third = make_secrets(folder, NAMES="other.example.org")

    assert "--renew" not in first
    assert {"localhost", "mixers", "mixer.example.org", "192.0.2.7"} < set(first)
    assert second == ["--out", "/out", "--renew"]
    assert third[2] == "--renew"
    assert {"localhost", "mixers", "other.example.org"} < set(third)
    assert (folder / "secrets/mixer/tokens").read_text() == tokens
