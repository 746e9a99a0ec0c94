"""The compose files below deploy/, as they are read without any .env: pyyaml does for what docker would."""

import re
from functools import cache
from typing import Any

import yaml
from expressions import DEPLOY

BASE = "compose.yaml"
OVERRIDES = ("compose.offline.yaml", "compose.tls.yaml")

_VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^{}]*))?\}")


class _Loader(yaml.SafeLoader):
    """Takes compose's own tag for the list that stands behind it."""


def _take_list(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


_Loader.add_constructor("!override", _take_list)


@cache
def text_of(name: str) -> str:
    """Read a file as it is."""
    return (DEPLOY / name).read_text()


def compose_file(name: str) -> dict[str, Any]:
    """Read a file with the defaults in the place of its variables."""
    return yaml.load(_VARIABLE.sub(lambda found: found[2] or "", text_of(name)), _Loader)


def services_in(name: str = BASE) -> dict[str, dict[str, Any]]:
    """Read the services of a file."""
    return compose_file(name)["services"]


def variables() -> dict[str, str]:
    """Find each variable that the files read, with its default."""
    found = [match for name in (BASE, *OVERRIDES) for match in _VARIABLE.finditer(text_of(name))]
    return {match[1]: match[2] or "" for match in found}
