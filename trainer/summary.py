"""The summary of a run: what all ranks did, added up."""

from collections.abc import Mapping

from trainer.evaluate import Accuracy
from trainer.provenance import software
from trainer.report import Row
from trainer.state import Run

FALLBACKS = "mixer_client_fallback_total"

_FAMILIES = {
    "steps": "trainer_steps_total",
    "images": "trainer_images_total",
    "fallbacks": FALLBACKS,
    "retries": "mixer_client_retries_total",
}


def summarise(recipe: str, run: Run, accuracy: Accuracy, heads: Mapping[str, Accuracy]) -> Row:
    """Add up what all ranks did; every rank must call it. Counters are those of this process, not of a run resumed.

    Args:
        recipe: name of the recipe.
        run: of this rank.
        accuracy: of the classifier, at the end.
        heads: at the end, of what the method names beside the classifier.
    """
    ranks = run.world.gather({name: int(run.metrics.value(family)) for name, family in _FAMILIES.items()})
    epochs = run.run_log.of("epoch")
    return {
        "recipe": recipe,
        "policy": run.config.mixing.policy,
        "world_size": run.world.size,
        "epochs": run.config.epochs,
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "best_top1": max(accuracy.top1, *(row["top1"] for row in epochs)),
        "evaluated": accuracy.samples,
        "top1_of_heads": {name: accuracy.top1 for name, accuracy in heads.items()},
        "first_loss": epochs[0]["loss"],
        "last_loss": epochs[-1]["loss"],
        "steps": ranks[0]["steps"],
        "images": sum(rank["images"] for rank in ranks),
        "fallbacks": sum(rank["fallbacks"] for rank in ranks),
        "retries": sum(rank["retries"] for rank in ranks),
        "ranks": ranks,
        "wait_share": sum(row["wait_share"] for row in epochs) / len(epochs),
        "seconds": round(run.run_log.seconds, 1),
        "images_per_s": round(sum(row["images_per_s"] for row in epochs) / len(epochs), 1),
        **software(),
    }
