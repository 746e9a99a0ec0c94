"""Configuration: frozen dataclasses, filled from a recipe, then the environment, then the command line."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from samix.errors import ConfigError
from services.environment import Environment, inherited_args, variable_prefix
from services.files import naming

ConfigT = TypeVar("ConfigT")


def parse_config(
    config: type[ConfigT],
    program: str,
    argv: Sequence[str] | None = None,
    *,
    environ: Environment = os.environ,
) -> ConfigT:
    """Read the flags of `samix PROGRAM` into a dataclass.

    Args:
        config: the dataclass, whose docstring heads the help; nested dataclasses become dotted flags.
        program: the verb, which also names the environment variables.
        argv: arguments without the program's name; None takes those of this process.
        environ: where variables SAMIX_<PROGRAM>_<FLAG> are looked up.

    Raises:
        ConfigError: for a variable that fits no flag, and with the sentence of a ValueError from `__post_init__`.
        SystemExit: after --help (0) and for a malformed flag (2), which tyro explained on stderr.
    """
    args = sys.argv[1:] if argv is None else argv
    return _parse(config, program, args, environ, usage=f"samix {program}", about=config.__doc__ or "")


def parse_recipe(
    recipes: Mapping[str, tuple[str, ConfigT]],
    program: str,
    argv: Sequence[str] | None = None,
    *,
    environ: Environment = os.environ,
) -> tuple[str, ConfigT]:
    """Read `samix PROGRAM RECIPE [--flags]`: the recipe is a full config, flags and variables change single values.

    Args:
        recipes: for each name a one-line description and the config.
        program: the verb, which also names the environment variables.
        argv: arguments without the program's name; None takes those of this process.
        environ: where variables SAMIX_<PROGRAM>_<FLAG> are looked up.

    Returns:
        The recipe's name and the resolved config.

    Raises:
        ConfigError: for an unknown recipe, and as `parse_config`.
        SystemExit: as `parse_config`, and without a recipe (2), with the list of them on stderr.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        sys.stderr.write(_recipes_help(recipes, program))
        raise SystemExit(2)
    name, *args = argv
    if name in ("-h", "--help"):
        sys.stdout.write(_recipes_help(recipes, program))
        raise SystemExit(0)
    if name not in recipes:
        known = ", ".join(recipes)
        raise ConfigError(f"no recipe is called {name!r}; `samix {program} RECIPE [--flags]` knows {known}")
    about, recipe = recipes[name]
    usage = f"samix {program} {name}"
    return name, _parse(type(recipe), program, args, environ, usage=usage, about=about, default=recipe)


def resolved(config: Any) -> dict[str, Any]:
    """Spell every value of a config (a dataclass) in the types of JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def write_resolved(config: Any, path: Path) -> None:
    """Write every value of a config (a dataclass) as JSON, for a person or `jq` to read next to a run's outputs."""
    with naming(path):
        path.write_text(json.dumps(resolved(config), indent=2, ensure_ascii=False) + "\n")


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Name the settings, such as `optimiser.lr`, that two resolved configs do not share, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found |= differences(one, other, f"{prefix}{name}.")
        elif one != other:
            found[f"{prefix}{name}"] = one, other
    return found


def _parse(
    config: type[ConfigT],
    program: str,
    args: Sequence[str],
    environ: Environment,
    *,
    usage: str,
    about: str,
    default: ConfigT | None = None,
) -> ConfigT:
    prefix = variable_prefix(program)
    inherited = inherited_args(config, prefix, environ)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                config,
                prog=usage,
                description=f"{about}\n--some.flag VALUE is also environment variable {prefix}SOME_FLAG.",
                args=[*itertools.chain(*inherited.values()), *args],  # of two equal flags the later one wins
                default=tyro.MISSING_NONPROP if default is None else default,
            )
    except SystemExit as err:
        if refusal := _refusal(err):
            raise ConfigError(str(refusal)) from refusal
        sys.stderr.write(errors.getvalue())
        if err.code and inherited:
            sys.stderr.write(f"from the environment: {' '.join(f'{name}={environ[name]}' for name in inherited)}\n")
        raise


def _refusal(err: SystemExit) -> BaseException | None:
    """Find the error of a `__post_init__` behind tyro's exit: its own sentence reads better than the box around it."""
    cause = err.__context__
    while cause is not None:
        if any(frame.name == "__post_init__" for frame in traceback.extract_tb(cause.__traceback__)):
            return cause
        cause = cause.__context__
    return None


def _recipes_help(recipes: Mapping[str, tuple[str, Any]], program: str) -> str:
    width = max(map(len, recipes)) + 2
    lines = [f"  {name:<{width}}{description}" for name, (description, _) in recipes.items()]
    usage = f"usage: samix {program} RECIPE [--flags]"
    return "\n".join([usage, "", "recipes:", *lines, "", f"`samix {program} RECIPE --help` lists the flags.\n"])
