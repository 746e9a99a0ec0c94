"""The names a stranger imports."""

import subprocess
import sys

import pytest

import samix
from samix.mixing.artefact import load_mixer
from samix.mixing.batch import MixedBatch, MixPlan

PUBLIC = {"MixPlan", "MixedBatch", "connect", "load_mixer"}


def test_the_public_names_are_exact() -> None:
    """`samix` offers load_mixer, connect, MixPlan and MixedBatch, and nothing else."""
    assert set(samix.__all__) == PUBLIC
    assert set(dir(samix)) >= PUBLIC
    assert all(getattr(samix, name).__name__ == name for name in PUBLIC)
    assert (samix.load_mixer, samix.MixPlan, samix.MixedBatch) == (load_mixer, MixPlan, MixedBatch)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Loading names late does not invent any."""
    with pytest.raises(AttributeError, match="no attribute 'mix'"):
        samix.mix  # type: ignore[attr-defined]  # noqa: B018


def test_importing_samix_does_not_wait_for_torch() -> None:
    """`import samix` and the command's help load neither torch nor grpc."""
    code = "import sys, samix, samix.cli; print(sorted({'torch', 'grpc', 'numpy', 'timm'} & sys.modules.keys()))"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert shown.stdout.strip() == "[]"
