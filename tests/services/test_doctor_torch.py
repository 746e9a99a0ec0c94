"""What the doctor says of torch, torchvision and GPUs, also of broken ones."""

import re
from pathlib import Path

import pytest

from services.doctor import torch_pair
from services.doctor.torch_pair import (
    KNOWN_PAIR,
    Probe,
    check_gpu,
    check_torch,
    driver_version,
    probe_torch,
    wanted_torch,
)

TORCH = {"version": "2.12.1+cu130", "cuda": "13.0"}
VISION = {"version": "0.27.1"}
NO_GPU = {"devices": [], "reason": "Found no NVIDIA driver"}
H200 = {"name": "NVIDIA H200", "free": 139 << 30, "total": 140 << 30, "trouble": ""}


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri Jan 10\nGCC version: 12\n")
    return file


@pytest.fixture(autouse=True)
def wanted(monkeypatch):
    monkeypatch.setattr(torch_pair, "wanted_torch", lambda: "2.12.1")


def probe(end: str = "", **stages) -> Probe:
    return Probe(stages=stages, end=end)


def program(folder: Path, code: str) -> Path:
    file = folder / "probe.py"
    file.write_text(code)
    return file


@pytest.mark.slow
def test_the_installed_pair_works():
    """The child finds torch and torchvision of this installation in order."""
    found = probe_torch()

    assert [finding.verdict for finding in check_torch(found)] == ["ok", "ok"], found


def test_the_installed_torchvision_names_its_torch(monkeypatch):
    """The version that torchvision was made for is read from its metadata."""
    monkeypatch.undo()

    assert wanted_torch().startswith("2.")


def test_the_pair_of_the_cure_is_the_one_of_the_lock():
    """What the doctor tells people to install is what the tests run with."""
    lock = (Path(__file__).parents[2] / "requirements.lock").read_text()

    assert all(re.search(rf"^{re.escape(requirement)}\b", lock, re.MULTILINE) for requirement in KNOWN_PAIR)


def test_a_pair_in_order():
    """Both are named with their versions."""
    findings = check_torch(probe(torch=TORCH, torchvision=VISION, nms={"kept": [0, 2]}))

    assert [finding.verdict for finding in findings] == ["ok", "ok"]
    assert "2.12.1+cu130 with CUDA 13.0" in findings[0].sentence


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"torch": {"error": "OSError: libcudnn.so.9"}}, "cannot be imported (OSError: libcudnn.so.9)"),
        (
            {"torch": TORCH, "torchvision": {"error": "RuntimeError: torchvision::nms"}},
            "(RuntimeError: torchvision::nms)",
        ),
        ({"torch": TORCH, "torchvision": VISION, "nms": {"error": "NotImplementedError"}}, "operators do not work"),
        ({"torch": TORCH, "torchvision": VISION, "nms": {"kept": [0]}}, "operators do not work"),
        (
            {"torch": {**TORCH, "version": "2.13.0"}, "torchvision": VISION},
            "made for torch 2.12.1, installed is 2.13.0",
        ),
    ],
)
def test_a_broken_pair(stages, said):
    """Whatever does not fit is a failure whose cure installs both together."""
    finding = check_torch(probe(**stages))[-1]

    assert finding.verdict == "failure"
    assert said in finding.sentence
    assert "pip install" in finding.cure


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11"),
        ("import time; time.sleep(60)", "no end within 0.5 s"),
        (r"import sys; sys.stdout.buffer.write(b'\xff\n\xff')", "it ended without a word"),
        ("print('a library speaks'); print('[1]'); print('{\"stage\":')", "it ended without a word"),
    ],
)
def test_a_torch_that_takes_the_process_along(tmp_path: Path, code, said):
    """A torch that crashes, hangs or talks is one failure, and the doctor lives."""
    found = probe_torch(program(tmp_path, code), timeout_s=0.5 if "sleep" in code else 20)

    (finding,) = check_torch(found)
    assert said in finding.sentence
    assert not found.has_torch


def test_what_was_said_before_the_end_counts(tmp_path: Path):
    """A GPU that hangs does not hide that torch was imported."""
    code = 'import time; print(\'{"stage": "torch", "version": "2", "cuda": ""}\', flush=True); time.sleep(60)'

    found = probe_torch(program(tmp_path, code), timeout_s=1)

    (finding,) = check_gpu(found, is_wanted=False)
    assert found.has_torch
    assert finding.verdict == "failure"
    assert "no end within 1 s" in finding.sentence


def test_a_gpu_in_order(driver: Path):
    """Each GPU is named with its memory and driver."""
    (finding,) = check_gpu(probe(torch=TORCH, gpu={"devices": [H200], "reason": ""}), is_wanted=True, driver=driver)

    assert finding.verdict == "ok"
    assert "NVIDIA H200, 139.0 GiB free of 140.0, driver 570.86.15" in finding.sentence


@pytest.mark.parametrize(
    ("is_wanted", "has_driver", "verdict"),
    [(False, False, "ok"), (True, False, "failure"), (False, True, "warning"), (True, True, "failure")],
)
def test_no_gpu(tmp_path: Path, driver: Path, is_wanted, has_driver, verdict):
    """No GPU is fine without a driver, odd with one, and a failure where one is wanted."""
    file = driver if has_driver else tmp_path / "none"

    (finding,) = check_gpu(probe(torch=TORCH, gpu=NO_GPU), is_wanted=is_wanted, driver=file)

    assert finding.verdict == verdict
    assert bool(finding.cure) == (verdict != "ok")


def test_a_gpu_that_cannot_compute(driver: Path):
    """A GPU for which torch has no kernels is a failure."""
    gpu = {"devices": [{**H200, "trouble": "CUDA error: no kernel image is available"}], "reason": ""}

    (finding,) = check_gpu(probe(torch=TORCH, gpu=gpu), is_wanted=False, driver=driver)

    assert finding.verdict == "failure"
    assert "no kernel image" in finding.sentence


def test_without_torch_a_gpu_is_not_checked():
    """What torch would have told is said not to be known."""
    (finding,) = check_gpu(probe(torch={"error": "ImportError"}), is_wanted=False)

    assert finding.verdict == "unchecked"


def test_a_driver_that_says_nothing(tmp_path: Path):
    """A file without a version is no version, and no crash."""
    (tmp_path / "version").write_text("?")

    assert driver_version(tmp_path / "version") == "of unknown version"
    assert driver_version(tmp_path / "none") == ""
