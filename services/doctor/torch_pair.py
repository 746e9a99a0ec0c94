"""Whether torch, torchvision and a GPU work, as a child process found out."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from services.doctor.findings import Finding, failure, ok, unchecked, warning

_PROBE = Path(__file__).with_name("torch_probe.py")
_PROBE_S = 180.0
_DRIVER = Path("/proc/driver/nvidia/version")
KNOWN_PAIR = ("torch==2.12.1", "torchvision==0.27.1")
"""Made for each other, and what we test with; whatever is newest of either need not be."""
_PAIR_CURE = f"install a pair from one index in one command: pip install --force-reinstall {' '.join(KNOWN_PAIR)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What the child said."""

    stages: dict[str, dict[str, Any]]
    """The results of torch_probe, as far as it came."""
    end: str
    """How it ended, where that was not in good order: `killed by signal 11`."""

    @property
    def has_torch(self) -> bool:
        """Whether torch can be imported."""
        return "version" in self.stages.get("torch", {})


def probe_torch(program: Path = _PROBE, timeout_s: float = _PROBE_S) -> Probe:
    """Run the probe and wait for it.

    Args:
        program: the probe.
        timeout_s: longest it may take, seconds; the first import after an installation takes half a minute.
    """
    # -P: nothing beside the probe, nor in the current folder, may be taken for a module of torch.
    command = [sys.executable, "-P", str(program)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as expired:
        return Probe(stages=_parsed(expired.stdout or b""), end=f"no end within {timeout_s:g} s")
    end = f"killed by signal {-done.returncode}" if done.returncode < 0 else ""
    return Probe(stages=_parsed(done.stdout), end=end)


def check_torch(probe: Probe) -> list[Finding]:
    """Tell whether torch and torchvision are there, and made for each other."""
    torch, torchvision, nms = (probe.stages.get(stage, {}) for stage in ("torch", "torchvision", "nms"))
    if "version" not in torch:
        return [failure("torch", f"cannot be imported ({_reason(torch, probe)})", _PAIR_CURE)]
    told = f"{torch['version']} with " + (f"CUDA {torch['cuda']}" if torch["cuda"] else "no CUDA")
    findings = [ok("torch", told)]
    wanted = wanted_torch()
    if wanted and wanted != _public(torch["version"]):
        sentence = f"is made for torch {wanted}, installed is {torch['version']}"
        return [*findings, failure("torchvision", sentence, f"pip install torch=={wanted}, or {_PAIR_CURE}")]
    if "version" not in torchvision:
        return [*findings, failure("torchvision", f"cannot be imported ({_reason(torchvision, probe)})", _PAIR_CURE)]
    if nms.get("kept") != [0, 2]:
        sentence = f"{torchvision['version']}: its operators do not work ({_reason(nms, probe)})"
        return [*findings, failure("torchvision", sentence, _PAIR_CURE)]
    return [*findings, ok("torchvision", f"{torchvision['version']}, made for this torch; its operators work")]


def check_gpu(probe: Probe, *, is_wanted: bool, driver: Path = _DRIVER) -> list[Finding]:
    """Tell which GPUs can be used.

    Args:
        probe: what torch said.
        is_wanted: whether it is a failure that there is none.
        driver: file by which NVIDIA's driver tells its version.
    """
    version = driver_version(driver)
    if not probe.has_torch:
        return [unchecked("gpu", "torch, which would tell, cannot be imported", "mend torch first")]
    if "gpu" not in probe.stages or "error" in probe.stages["gpu"]:
        reason = _reason(probe.stages.get("gpu", {}), probe)
        return [
            failure("gpu", f"driver {version or 'not found'}; asking it failed ({reason})", "look into `nvidia-smi`")
        ]
    gpu = probe.stages["gpu"]
    if gpu["devices"]:
        return [_told_device(index, device, version) for index, device in enumerate(gpu["devices"])]
    if version:
        cure = "start the container with --gpus all, update the driver, or install a torch with CUDA for this driver"
        return [
            (failure if is_wanted else warning)(
                "gpu", f"driver {version}, but torch cannot use it: {gpu['reason']}", cure
            )
        ]
    if is_wanted:
        cure = "install NVIDIA's driver; in a container --gpus all and the NVIDIA container toolkit"
        return [failure("gpu", f"none: no NVIDIA driver here ({gpu['reason']})", cure)]
    return [ok("gpu", "none, no NVIDIA driver here: programs run on the CPU (--device cuda makes this a failure)")]


def driver_version(file: Path) -> str:
    """Read the version of NVIDIA's driver; empty where there is none."""
    try:
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", file.read_text())
    except OSError:
        return ""
    return found[1] if found else "of unknown version"


def wanted_torch() -> str:
    """Read which torch the installed torchvision was made for; empty where it does not say."""
    try:
        found = [re.match(r"torch\s*\(?==\s*([\w.]+)", requirement) for requirement in requires("torchvision") or []]
    except PackageNotFoundError:
        return ""
    return next((_public(match[1]) for match in found if match), "")


def _told_device(index: int, device: dict[str, Any], version: str) -> Finding:
    gib = 1 << 30
    name = f"cuda:{index} {device['name']}, {device['free'] / gib:.1f} GiB free of {device['total'] / gib:.1f}"
    if device["trouble"]:
        cure = "install a torch with kernels for this GPU; if its memory is full, `nvidia-smi` says of whom"
        return failure("gpu", f"{name}, driver {version}: cannot compute ({device['trouble']})", cure)
    return ok("gpu", f"{name}, driver {version}; computes")


def _public(version: str) -> str:
    return version.partition("+")[0]


def _reason(stage: dict[str, Any], probe: Probe) -> str:
    return str(stage.get("error") or probe.end or "it ended without a word")


def _parsed(text: bytes) -> dict[str, dict[str, Any]]:
    stages = {}
    for line in text.splitlines():
        try:
            said = json.loads(line)
            stages[said.pop("stage")] = said
        except (ValueError, KeyError, TypeError, AttributeError):  # cut off, or a library's own words
            continue
    return stages
