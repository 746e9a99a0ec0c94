"""What all benchmarks say beside their figures, and where they write them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from samix.errors import ConfigError
from trainer.provenance import software
from trainer.report import write_summary


def check_output(rounds: int, json: Path) -> None:
    """Refuse what no benchmark can do.

    Raises:
        ConfigError: by value.
    """
    if not 1 <= rounds <= 99:
        raise ConfigError(f"rounds must lie in 1..99, got {rounds}")
    if json.suffix != ".json" or json.is_dir():
        raise ConfigError(f"json must name a file that ends in .json, got {str(json)!r}")


def describe(*, pinned: Any, settings: Mapping[str, Any], packages: Sequence[str] = ()) -> dict[str, Any]:
    """Begin a report: date, machine, versions, which cores were used and what was asked for.

    Args:
        pinned: what the report says of cores.
        settings: flags and constants that the figures depend on.
        packages: whose versions matter, beside torch's.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {**software(), **{name: version(name) for name in packages}},
        "pinned": pinned,
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
    }


def headline(about: Mapping[str, Any], cores: str, packages: Sequence[str] = ()) -> str:
    """Name machine, load, cores, commit, versions and date in two lines."""
    machine, versions = about["machine"], about["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", *packages))
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']}; {cores}\n"
        f"commit {versions['commit']}, {named}, {about['date']}"
    )


def prepare_output(json: Path) -> None:
    """Make the folder, and remove the figures of an older run, so that a failed one leaves none."""
    json.parent.mkdir(parents=True, exist_ok=True)
    json.unlink(missing_ok=True)


def publish(json: Path, report: dict[str, Any], table: str, how_to_read: str) -> None:
    """Write the report, print the table and how to read it."""
    write_summary(json, report)
    print(f"\n{table}\n\n{how_to_read}\nwritten to {json}", flush=True)
