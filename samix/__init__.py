"""SAMix, a learned image mixer: mathematics, in-process engine and client of the mixer service.

    from samix import load_mixer, connect

    mixer = connect("localhost:8001")
    mixed = mixer.mix(images, labels, seed=7)

Names are loaded on first use, so that `import samix` and the `samix` command do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samix.client.remote import connect
    from samix.mixing.artefact import load_mixer
    from samix.mixing.batch import MixedBatch, MixPlan

__all__ = ["MixPlan", "MixedBatch", "connect", "load_mixer"]

_HOME = {
    "MixPlan": "samix.mixing.batch",
    "MixedBatch": "samix.mixing.batch",
    "connect": "samix.client.remote",
    "load_mixer": "samix.mixing.artefact",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'samix' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
