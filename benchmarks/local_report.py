"""What `benchmarks.local` found, as a table."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(cases: Sequence[Mapping[str, Any]], jpeg: Sequence[Mapping[str, Any]]) -> str:
    """Lay images/s out for a terminal."""
    ways = list(cases[0]["images_per_s"])
    lines = [_line("mixer", "threads", "batch", *ways)]
    for case in cases:
        speeds = (f"{case['images_per_s'][way]:,.0f}" for way in ways)
        lines.append(_line(f"{case['mixer']}, {case['side']} px", case["threads"], case["batch_size"], *speeds))
    for case in jpeg:
        about = f"jpeg, {case['side']} px, {case['bytes'] / 1000:.0f} kB"
        lines.append(_line(about, case["threads"], 64, f"{case['images_per_s']['decode']:,.0f}"))
    return "\n".join(["images/s", *lines])


def _line(about: str, threads: int | str, batch: int | str, *cells: str) -> str:
    return f"{about:<24}{threads:>8}{batch:>7}" + "".join(f"{cell:>13}" for cell in cells)
