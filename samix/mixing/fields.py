"""From JSON that may hold anything to frozen dataclasses whose fields are of the annotated kinds."""

import dataclasses
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

_LARGEST = 1e38  # what float32 holds; False for NaN, and whole numbers of any length compare
_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


def read_fields(kind: type[T], raw: object, name: str) -> T:
    """Build a dataclass from a JSON object; fields with a default may be missing.

    Args:
        kind: the dataclass; its fields are numbers, strings, Literals, tuples of these, or dataclasses.
        raw: what `json.loads` returned.
        name: how messages call the object, for example "spec".

    Raises:
        ValueError: if a field is missing, unknown or of another kind, naming it.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{name} must be an object, got {_shown(raw)}")
    assert dataclasses.is_dataclass(kind)
    hints = get_type_hints(kind)
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    unknown, missing = sorted(raw.keys() - hints.keys()), sorted(required - raw.keys())
    if unknown or missing:
        complaint = f"lacks {missing[0]}" if missing else f"has an unknown {_shown(unknown[0])}"
        raise ValueError(f"{name} {complaint}")
    return kind(**{key: _read(hints[key], value, f"{name}.{key}") for key, value in raw.items()})


def _read(kind: Any, value: object, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return read_fields(kind, value, name)
    if get_origin(kind) is tuple:
        return _read_tuple(get_args(kind), value, name)
    if get_origin(kind) is Literal:
        fits = value in get_args(kind)
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
    else:
        fits = type(value) is kind  # not isinstance: True is no number
    if not fits:
        raise ValueError(f"{name} must be {_called(kind)}, got {_shown(value)}")
    return value


def _read_tuple(kinds: tuple[Any, ...], value: object, name: str) -> tuple:
    repeats = kinds[-1] is Ellipsis
    if not isinstance(value, list) or not (repeats or len(value) == len(kinds)):
        length = "" if repeats else f" of {len(kinds)}"
        raise ValueError(f"{name} must be a list{length}, got {_shown(value)}")
    return tuple(
        _read(kinds[0] if repeats else kinds[index], item, f"{name}[{index}]") for index, item in enumerate(value)
    )


def _called(kind: Any) -> str:
    return " or ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else _NAMES[kind]


def _shown(value: object) -> str:
    return repr(value)[:60]
