"""Flags from the environment: `--mixing.failure-budget` of `samix train` is SAMIX_TRAIN_MIXING_FAILURE_BUDGET.

An empty variable counts as unset (what compose files pass for "nothing given"), a misspelt one is refused. List flags
split their variable as a shell would; switches take 1/true/yes/on and 0/false/no/off. What Kubernetes sets in every pod
for each Service (SAMIX_SERVE_PORT=tcp://10.0.0.7:8001 for one called samix-serve) is left alone.
"""

import dataclasses
import difflib
import logging
import re
import shlex
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

import tyro

from samix.errors import ConfigError

log = logging.getLogger(__name__)

Environment = Mapping[str, str]

_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

_SERVICE_LINK = re.compile(
    r"\w+(_SERVICE_HOST=|_SERVICE_PORT(_\w+)?=|_PORT=(tcp|udp|sctp)://|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=)"
)


_UNDERSCORES = str.maketrans(dict.fromkeys("-. ", "_"))


def variable_prefix(program: str) -> str:
    """Name what the variables of `samix PROGRAM` start with."""
    return f"SAMIX_{_as_variable(program)}_"


def inherited_args(config: type, prefix: str, environ: Environment) -> dict[str, list[str]]:
    """Find the variables that set flags of a dataclass.

    Returns:
        For each variable the arguments it stands for.

    Raises:
        ConfigError: for a variable that fits no flag, or whose value no flag can have.
    """
    flags = {prefix + _as_variable(flag): (flag, hint) for flag, hint in _flags(config)}
    inherited: dict[str, list[str]] = {}
    for name, value in environ.items():
        if not name.startswith(prefix) or not value:
            continue
        if _SERVICE_LINK.match(f"{name}={value}"):
            log.debug("kubernetes_variable_ignored", extra={"variable": name, "value": value})
        elif name in flags:
            inherited[name] = _as_args(*flags[name], name, value)
        else:
            raise ConfigError(f"environment variable {name} fits no flag; {_suggestion(name, flags, prefix)}")
    return inherited


def _as_variable(name: str) -> str:
    return name.upper().translate(_UNDERSCORES)


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


def _suggestion(name: str, known: Iterable[str], prefix: str) -> str:
    # Without the prefix: it is long, so all names would be near each other.
    near = difflib.get_close_matches(name.removeprefix(prefix), [other.removeprefix(prefix) for other in known], n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(sorted(known))}"


def _as_args(flag: str, hint: Any, variable: str, value: str) -> list[str]:
    if hint is bool:
        if value.lower() not in _SWITCH:
            raise ConfigError(f"environment variable {variable} must be one of {', '.join(_SWITCH)}, got {value!r}")
        parent, dot, name = flag.rpartition(".")
        return [f"--{flag}" if _SWITCH[value.lower()] else f"--{parent}{dot}no-{name}"]
    if _takes_many(hint):
        return [f"--{flag}", *_split(variable, value)]
    return [f"--{flag}={value}"]  # in one word, so that no value is taken for another flag


def _takes_many(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_takes_many(option) for option in get_args(hint))
    return get_origin(hint) in (tuple, list, set, frozenset, dict)


def _split(variable: str, value: str) -> list[str]:
    try:
        items = shlex.split(value)
    except ValueError as err:
        raise ConfigError(
            f"environment variable {variable} is split as by a shell, got {value!r}; close the quote"
        ) from err
    for item in items:
        if re.match(r"-+[a-zA-Z]", item):
            raise ConfigError(f"environment variable {variable} holds {item!r}, a flag; for a file write ./{item}")
    return items
