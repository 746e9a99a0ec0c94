"""The summary of a run: what all ranks did, added up."""

from collections.abc import Mapping
from statistics import fmean

from trainer.evaluate import Evaluation
from trainer.provenance import software
from trainer.report import Row
from trainer.state import Run

FALLBACKS = "mixer_client_fallback_total"

_FAMILIES = {
    "steps": "trainer_steps_total",
    "images": "trainer_images_total",
    "skipped_samples": "trainer_skipped_samples_total",
    "fallbacks": FALLBACKS,
    "retries": "mixer_client_retries_total",
}


def summarise(run: Run, evaluation: Evaluation, heads: Mapping[str, Evaluation]) -> Row:
    """Add up what all ranks did; every rank must call it. Counters are those of this process, not of a run resumed.

    Args:
        run: of this rank.
        evaluation: of the classifier, at the end.
        heads: at the end, of what the method names beside the classifier.
    """
    ranks = run.world.gather({name: int(run.metrics.value(family)) for name, family in _FAMILIES.items()})
    epochs = run.run_log.of("epoch")
    return {
        "recipe": run.recipe,
        "policy": run.config.mixing.policy,
        "world_size": run.world.size,
        "epochs": run.config.epochs,
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "cross_entropy": evaluation.cross_entropy,
        "calibration_error": evaluation.calibration_error,
        "best_top1": max([evaluation.top1, *(row["top1"] for row in epochs)]),
        "evaluated": evaluation.samples,
        "top1_of_heads": {name: found.top1 for name, found in heads.items()},
        "first_loss": epochs[0]["loss"],
        "last_loss": epochs[-1]["loss"],
        "steps": ranks[0]["steps"],
        **{name: sum(rank[name] for rank in ranks) for name in _FAMILIES if name != "steps"},
        "ranks": ranks,
        "wait_share": fmean(row["wait_share"] for row in epochs),
        "seconds": round(run.run_log.seconds, 1),
        "images_per_s": round(fmean(row["images_per_s"] for row in epochs), 1),
        **software(),
    }
