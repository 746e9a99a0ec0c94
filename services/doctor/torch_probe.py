"""Imports torch and torchvision in a process of its own: builds that do not fit can crash or hang it.

Prints one JSON object for each stage as it is done, so that whoever reads them knows where it ended.
"""

import json
import sys
from collections.abc import Callable
from typing import Any


def main() -> int:
    """Go through the stages; the first one that fails is the last."""
    for name, stage in STAGES.items():
        try:
            result = stage()
        except Exception as error:  # noqa: BLE001 - broken builds raise anything: OSError, RuntimeError, AttributeError
            _tell(name, {"error": " ".join(f"{type(error).__name__}: {error}".split())})
            return 1
        _tell(name, result)
    return 0


def _torch() -> dict[str, Any]:
    import torch

    return {"version": torch.__version__, "cuda": torch.version.cuda}


def _gpu() -> dict[str, Any]:
    import torch

    if torch.version.cuda is None:
        return {"devices": [], "reason": "this torch is built without CUDA"}
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # no driver, an old one, no device, or one that is lost
        return {"devices": [], "reason": str(error).partition("\n")[0]}
    return {"devices": [_device(index) for index in range(torch.cuda.device_count())], "reason": ""}


def _device(index: int) -> dict[str, Any]:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    try:
        computed = torch.ones(8, device=f"cuda:{index}").add(1).sum().item()
        trouble = "" if computed == 16 else f"added 1 to 8 ones and got {computed}"
    except RuntimeError as error:  # no kernels for its generation, or its memory is full
        trouble = str(error).partition("\n")[0]
    return {"name": torch.cuda.get_device_name(index), "free": free, "total": total, "trouble": trouble}


def _torchvision() -> dict[str, Any]:
    import torchvision

    return {"version": torchvision.__version__}


def _nms() -> dict[str, Any]:
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [2.0, 2.0, 3.0, 3.0]])
    return {"kept": nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()}


def _tell(stage: str, result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"stage": stage, **result}) + "\n")
    sys.stdout.flush()


STAGES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": _torch,
    "gpu": _gpu,
    "torchvision": _torchvision,
    "nms": _nms,
}
"""In the order in which they need each other; what a GPU says does not depend on torchvision."""

if __name__ == "__main__":
    sys.exit(main())
