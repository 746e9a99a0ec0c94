"""What a check found, as one line with its cure."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from samix.errors import InputError

Verdict = Literal["ok", "warning", "failure", "unchecked"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the doctor's."""

    check: str
    """What was looked at, in a word or two."""
    verdict: Verdict
    """`warning`: works, but not well or not everywhere. `failure`: will not work. `unchecked`: could not be told."""
    sentence: str
    """What was found, with its values."""
    cure: str = ""
    """What to do about it, or in order to have it checked; empty where all is well."""


def ok(check: str, sentence: str) -> Finding:
    """Say that all is well."""
    return Finding(check=check, verdict="ok", sentence=sentence)


def warning(check: str, sentence: str, cure: str) -> Finding:
    """Say what works, but not well."""
    return Finding(check=check, verdict="warning", sentence=sentence, cure=cure)


def failure(check: str, sentence: str, cure: str) -> Finding:
    """Say what will not work."""
    return Finding(check=check, verdict="failure", sentence=sentence, cure=cure)


def unchecked(check: str, sentence: str, cure: str) -> Finding:
    """Say what could not be told, with the reason."""
    return Finding(check=check, verdict="unchecked", sentence=sentence, cure=cure)


def failure_of(check: str, error: InputError | OSError) -> Finding:
    """Make a failure of an error, whose sentence ends with its cure."""
    sentence, _, cure = str(error).rpartition("; ")
    return failure(check, sentence or cure, cure if sentence else "check path and permissions")


def lacking(check: str, error: ModuleNotFoundError, extra: str) -> Finding:
    """Say that a check needs a package that this installation does not have."""
    return unchecked(check, f"needs the package {error.name}", f"pip install 'samix-service[{extra}]'")


@contextmanager
def surviving(check: str, findings: list[Finding]) -> Iterator[None]:
    """Turn what nobody expected in the block into a failure: on a broken machine the other checks matter the more."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the edge of one check; libraries that do not fit raise anything
        told = " ".join(f"{type(error).__name__}: {error}".split())
        findings.append(
            failure(check, f"the check broke off ({told})", "mend this first; if it is none of yours, report it")
        )
