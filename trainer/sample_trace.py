"""Which samples each step of a run used: for audits, and to see that none is repeated or left out.

One JSON object a line in samples-rank0.jsonl and so on. Batches are noted as they leave the loader, some steps before
they are trained on; a run that is resumed cuts what is done again.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from services.files import naming, replace_text
from services.shards.dataset import Batch


def traced(
    batches: Iterable[Batch], path: Path, *, epoch: int, first_batch: int, micro_batches: int
) -> Iterator[Batch]:
    """Pass batches through while noting {"epoch", "step", "positions"} of each.

    Args:
        batches: of one rank.
        path: file to append to.
        epoch: number of the epoch, from 0.
        first_batch: number of the first batch in its epoch.
        micro_batches: batches of one step.
    """
    for number, batch in enumerate(batches, start=first_batch):
        row = {"epoch": epoch, "step": number // micro_batches, "positions": batch.positions.tolist()}
        with naming(path), path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        yield batch


def trace_path(folder: Path, rank: int) -> Path:
    """Name the file of a rank."""
    return folder / f"samples-rank{rank}.jsonl"


def cut_traces(folder: Path, *, epoch: int, step: int) -> None:
    """Take from all files of a run what stands behind a step, counted from 0, of an epoch."""
    for path in folder.glob("samples-rank*.jsonl"):
        rows = [row for row in read_trace(path) if (row["epoch"], row["step"]) < (epoch, step)]
        replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_trace(path: Path) -> list[dict]:
    """Read the file of a rank; a last line that was cut by a crash is left out."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
