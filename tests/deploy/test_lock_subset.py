"""Images get the packages they need from requirements.lock, and no other."""

import re
import subprocess
import sys

import pytest
from expressions import DEPLOY

ROOT = DEPLOY.parent
TORCH = ["--without", "torch", "torchvision"]


def subset(*words: str, root: object = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, DEPLOY / "lock_subset.py", "--skip", "aiohttp", "--root", root, *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def names(*words: str) -> set[str]:
    run = subset(*words)
    assert run.returncode == 0, run.stderr
    return set(re.findall(r"^([\w.-]+)==", run.stdout, re.MULTILINE))


def test_the_server_has_none_of_the_trainers_packages():
    """What draws, and what digits are read with, is not in the server's image."""
    server = names("--extras", "server", *TORCH)

    assert {"grpcio", "grpcio-health-checking", "timm", "tyro", "simplejpeg"} <= server
    assert not server & {"matplotlib", "scikit-learn", "scipy", "fonttools", "torch", "numpy", "pytest", "pyright"}


def test_the_trainer_has_none_of_the_servers_packages():
    """Health checking and reflection are the server's."""
    trainer = names("--extras", "trainer", *TORCH)

    assert {"grpcio", "matplotlib", "timm", "tqdm"} <= trainer
    assert not trainer & {"grpcio-health-checking", "grpcio-reflection", "scikit-learn", "scipy", "torch", "pytest"}


def test_torch_comes_with_what_it_needs():
    """Its layer is complete, and has nothing of ours."""
    torch = names("--packages", "torch", "torchvision")

    assert {"torch", "torchvision", "triton", "nvidia-cudnn-cu13", "numpy", "pillow", "sympy"} <= torch
    assert not torch & {"grpcio", "timm", "aiohttp"}


def test_requirements_keep_their_hashes():
    """Each pinned version stands there as in the lock: with every hash and its marker."""
    lock = (ROOT / "requirements.lock").read_text()

    made = subset("--packages", "numpy").stdout

    assert len(re.findall(r"^numpy==", made, re.MULTILINE)) == 2
    assert made.count("--hash=sha256:") > 10
    assert all(line in lock for line in made.splitlines())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--extras", "ghost"], "pyproject.toml has no extra 'ghost'; it has server"),
        (["--packages", "ghost"], "ghost is not in requirements.lock; run `make lock`"),
    ],
)
def test_what_is_not_there_is_named(words: list[str], sentence: str):
    """An extra or package that does not exist ends the build with a sentence."""
    run = subset(*words)

    assert run.returncode == 2
    assert sentence in run.stderr
    assert run.stdout == ""
