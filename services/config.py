"""Configuration: frozen dataclasses, filled from a recipe, then the environment, then the command line.

`--mixing.failure-budget` of `samix train` is also SAMIX_TRAIN_MIXING_FAILURE_BUDGET; the command line wins. An empty
variable counts as unset (what compose files pass for "nothing given"), a misspelt one is refused. List flags split
their variable as a shell would; switches take 1/true/yes/on and 0/false/no/off.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import shlex
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from samix.errors import ConfigError

ConfigT = TypeVar("ConfigT")
Environment = Mapping[str, str]

_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


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
        SystemExit: as `parse_config`.
    """
    name, *args = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(_recipes_help(recipes, program))
        raise SystemExit(0)
    if name not in recipes:
        known = ", ".join(recipes)
        raise ConfigError(f"no recipe is called {name!r}; `samix {program} RECIPE [--flags]` knows {known}")
    about, recipe = recipes[name]
    usage = f"samix {program} {name}"
    return name, _parse(type(recipe), program, args, environ, usage=usage, about=about, default=recipe)


def write_resolved(config: Any, path: Path) -> None:
    """Write every value of a config (a dataclass) as JSON, for a person or `jq` to read next to a run's outputs."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=2, default=str, ensure_ascii=False) + "\n")


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
    prefix = f"SAMIX_{_as_variable(program)}_"
    inherited = _inherited_args(config, prefix, environ)
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


def _as_variable(name: str) -> str:
    return name.upper().replace("-", "_").replace(".", "_")


def _flags(config: type, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted flag without dashes in front, type) for each value of a dataclass and of those inside it."""
    hints = get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
            continue
        flag = path + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _flags(hint, f"{flag}.")
        else:
            yield flag, hint


def _inherited_args(config: type, prefix: str, environ: Environment) -> dict[str, list[str]]:
    """Find the variables that are set, each with the arguments it stands for."""
    flags = {prefix + _as_variable(flag): (flag, hint) for flag, hint in _flags(config)}
    given = {name: value for name, value in environ.items() if name.startswith(prefix) and value}
    for name in given.keys() - flags.keys():
        raise ConfigError(f"environment variable {name} fits no flag; known are {', '.join(sorted(flags))}")
    return {name: _as_args(*flags[name], name, value) for name, value in given.items()}


def _as_args(flag: str, hint: Any, variable: str, value: str) -> list[str]:
    if hint is bool:
        if value.lower() not in _SWITCH:
            raise ConfigError(f"environment variable {variable} must be one of {', '.join(_SWITCH)}, got {value!r}")
        parent, dot, name = flag.rpartition(".")
        return [f"--{flag}" if _SWITCH[value.lower()] else f"--{parent}{dot}no-{name}"]
    return [f"--{flag}", *(shlex.split(value) if _takes_many(hint) else [value])]


def _takes_many(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_takes_many(option) for option in get_args(hint))
    return get_origin(hint) in (tuple, list, set, frozenset, dict)


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
