"""Train a classifier on batches that a mixer server, or this process, mixes."""

import logging
import sys
from collections.abc import Sequence

from services.cli import program
from services.config import parse_recipe
from services.logs import setup_logging
from services.malloc import tune_malloc
from trainer.fallback import BudgetSpent
from trainer.recipes import RECIPES
from trainer.run import run


@program
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run `samix train RECIPE [--flags]`, also as `torchrun --nproc-per-node N -m trainer RECIPE [--flags]`."""
    recipe, config = parse_recipe(RECIPES, "train", argv)
    setup_logging(config.log_format, level=logging.INFO)
    tune_malloc()
    try:
        run(recipe, config)
    except BudgetSpent as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
