"""Where an artefact or a run comes from, as far as this machine can tell."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

_COMMIT = "SAMIX_COMMIT"
"""Variable with the commit that a container image was built from: there is no git in one."""


def software() -> dict[str, str]:
    """Name the versions that made something: package, commit (`unknown` outside a checkout), torch and Python."""
    return {
        "samix-service": version("samix-service"),
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _commit() -> str:
    if built_from := os.environ.get(_COMMIT):
        return built_from
    root = Path(__file__).parents[1]
    try:
        answer = subprocess.run(
            # Not whatever repository lies around the folder: an installed package may stand inside somebody else's.
            ["git", "--git-dir", root / ".git", "--work-tree", root, "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
