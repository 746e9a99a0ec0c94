"""What `samix train RECIPE --eval CHECKPOINT` leaves: figures, a table of classes, a picture, and lines to read."""

import csv
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from samix.errors import ConfigError
from services.shards.dataset import Batch
from trainer.calibration import NUM_BINS
from trainer.evaluate import Evaluation, evaluate
from trainer.pictures.evaluation import draw_evaluation, worst_classes
from trainer.report import Row, write_summary
from trainer.world import World

JSON_NAME, TABLE_NAME, PICTURE_NAME = "evaluation.json", "per_class.csv", "evaluation.png"


def evaluate_run(
    model: nn.Module,
    batches: Iterable[Batch],
    world: World,
    head: Callable[[Tensor], Tensor],
    out: Path,
    *,
    num_classes: int,
    classes: Sequence[str] = (),
    about: Mapping[str, Any],
) -> Evaluation:
    """Evaluate, then have the main rank write evaluation.json, per_class.csv and evaluation.png, and print the figures.

    Args:
        model, batches, world, head, num_classes: see `evaluate`; every rank must call it.
        out: an existing folder.
        classes: their names, by number; where there are none, as in an index without them, they go by their numbers.
        about: what else evaluation.json says, such as recipe and checkpoint; the first values head the picture.

    Raises:
        ConfigError: if the model answers with what is no number.
        OSError: if a file cannot be written.
    """
    names = classes or [f"class {number}" for number in range(num_classes)]
    found = evaluate(model, batches, world, head, num_classes=num_classes)
    if not math.isfinite(found.cross_entropy):
        raise ConfigError(
            f"the mean cross-entropy is {found.cross_entropy}: the weights are broken; use an older checkpoint"
        )
    if world.is_main:
        write_summary(out / JSON_NAME, {**about, "world_size": world.size, **_figures(found, names)})
        _write_classes(out / TABLE_NAME, found, names)
        draw_evaluation(out / PICTURE_NAME, found, names, ", ".join(map(str, about.values())))
        sys.stdout.write(_text(found, names, out))
    return found


def _figures(found: Evaluation, names: Sequence[str]) -> Row:
    return {
        "top1": found.top1,
        "top5": found.top5,
        "cross_entropy": found.cross_entropy,
        "calibration_error": found.calibration_error,
        "samples": found.samples,
        "seconds": found.seconds,
        "images_per_s": found.images_per_s,
        "bins": [
            {"above": number / NUM_BINS, "up_to": (number + 1) / NUM_BINS, **asdict(each)}
            for number, each in enumerate(found.bins)
        ],
        "classes": [
            {"class": number, "name": name, "samples": found.class_samples[number], "top1": found.class_top1(number)}
            for number, name in enumerate(names)
        ],
    }


def _write_classes(path: Path, found: Evaluation, names: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["class", "name", "samples", "top1"], lineterminator="\n")
        table.writeheader()
        table.writerows(_figures(found, names)["classes"])


def _text(found: Evaluation, names: Sequence[str], out: Path) -> str:
    rows = [
        ("top-1", f"{found.top1:.2%}"),
        ("top-5", f"{found.top5:.2%}"),
        ("cross-entropy", f"{found.cross_entropy:.4f} nats"),
        ("calibration error", f"{found.calibration_error:.2%}"),
        ("samples", f"{found.samples}"),
        ("speed", f"{found.images_per_s:.1f} images/s"),
    ]
    for place, number in enumerate(worst_classes(found)):
        of = f"{found.class_right[number]} of {found.class_samples[number]}"
        rows.append(("" if place else "lowest top-1", f"{found.class_top1(number) or 0:.1%}  {names[number]} ({of})"))
    lines = [f"  {title:<20}{value}" for title, value in rows]
    files = f"  look at {out}/{PICTURE_NAME}, {TABLE_NAME}; numbers: {JSON_NAME}"
    return "\n".join(["", *lines, "", files, "", ""])
