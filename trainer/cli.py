"""Train a classifier on mixed batches; torchrun starts several ranks of it."""

import os
from collections.abc import Sequence

from services.cli import program
from services.config import parse_recipe
from services.logs import setup_logging
from services.malloc import tune_malloc
from services.tracing import open_tracing
from trainer.recipes import RECIPES
from trainer.run import run


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `samix train RECIPE [--flags]`, also as `torchrun --nproc-per-node N -m trainer RECIPE [--flags]`."""
    recipe, config = parse_recipe(RECIPES, "train", argv)
    setup_logging(config.log_format, rank=0)
    tune_malloc()
    with open_tracing(config.tracing, "samix-trainer", rank=int(os.environ.get("RANK", 0))):
        run(recipe, config)
