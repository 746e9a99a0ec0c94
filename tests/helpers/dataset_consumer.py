"""One consumer in a process of its own: takes batches and writes down, batch by batch, what it was given.

    python dataset_consumer.py LEDGER '{"target": ..., "dataset": ..., "mixer": ..., "pause_s": ..., "options": {...}}'

A line of the ledger is what a training step would have learned from: who is killed goes on behind its last whole line.
"""

import json
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

from samix import connect
from samix.client.datasets.batch import ReadyBatch


def line_of(batch: ReadyBatch) -> dict[str, Any]:
    """Say what a batch holds, briefly, and the place after it."""
    return {
        "keys": batch.keys,
        "partners": batch.partner_keys,
        "labels": batch.labels_a.tolist(),
        "lam": [round(value, 6) for value in batch.lam.tolist()],
        "pixels": zlib.crc32(batch.pixels.numpy().tobytes()),
        "cursor": batch.cursor,
    }


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines that are there by now."""
    lines = path.read_text().split("\n") if path.exists() else [""]
    return [json.loads(line) for line in lines[:-1]]


def main() -> None:
    """Consume the epoch, or what is left of it behind the ledger."""
    path, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    done = read_ledger(path)
    cursor = done[-1]["cursor"] if done else None
    with (
        path.open("a") as ledger,
        connect(wanted["target"], mixer=wanted["mixer"]) as remote,
        remote.subscribe(wanted["dataset"], mix=bool(wanted["mixer"]), cursor=cursor, **wanted["options"]) as batches,
    ):
        for batch in batches:
            ledger.write(json.dumps(line_of(batch)) + "\n")
            ledger.flush()
            threading.Event().wait(wanted["pause_s"])  # the step


if __name__ == "__main__":
    main()
