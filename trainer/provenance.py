"""Where an artefact or a run comes from, as far as this machine can tell."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def software() -> dict[str, str]:
    """Name the versions that made something: package, commit (`unknown` outside a checkout), torch and Python."""
    return {
        "samix-service": version("samix-service"),
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _commit() -> str:
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
