"""The Python environments of other systems: made on demand from pinned versions, kept for the next run."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

_INSTALL_S = 900.0
_STAMP = "installed.txt"
_REASON_LENGTH = 200


class NotInstalled(Exception):
    """An environment cannot be made on this machine; the message says why."""


def open_venv(requirements: Path, folder: Path) -> Path:
    """Make the environment that a file of requirements describes, unless it is there.

    Args:
        requirements: pinned versions, one a line; its name is the environment's.
        folder: where environments are kept; the log of an installation stays there too.

    Returns:
        The environment's Python.

    Raises:
        NotInstalled: if the packages cannot be installed.
    """
    venv = folder / requirements.stem
    python, stamp, wanted = venv / "bin/python", venv / _STAMP, _fingerprint(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    log = folder / f"{requirements.stem}.log"
    print(f"installing {requirements.stem} into {venv} (log: {log})", flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    _run([sys.executable, "-m", "venv", str(venv)], log)
    _run([str(python), "-m", "pip", "install", "--disable-pip-version-check", "--requirement", str(requirements)], log)
    stamp.write_text(wanted)  # last, so that an installation that was broken off is made anew
    return python


def read_versions(requirements: Path) -> dict[str, str]:
    """Read the pinned version of each package, extras left out."""
    pins = (line.partition("==") for line in requirements.read_text().split())
    return {name.partition("[")[0]: number for name, _, number in pins}


def _fingerprint(requirements: Path) -> str:
    return hashlib.sha256(sys.version.encode() + requirements.read_bytes()).hexdigest()


def _run(command: list[str], log: Path) -> None:
    with log.open("ab") as output:
        try:
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=_INSTALL_S
            ).returncode
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"the installation took longer than {_INSTALL_S:.0f} s (log: {log})") from None
    if status:
        raise NotInstalled(f"{_reason(log)} (log: {log})")


def _reason(log: Path) -> str:
    """Quote the last error, or else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no reason was given"])[-1][:_REASON_LENGTH]
