"""Places in a subscription as plain values, fit for JSON and for checkpoints.

    {"epoch": 2, "token": "6f0c...", "cursor": {"fingerprint": "9a41...", "seed": 0, "num_batches": 17, ...}}

The cursor is the place; the token says that who comes back is the same consumer, not another one at its place.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from samix.errors import InputError
from samix.mixer.v1 import dataset_pb2 as pb

Cursor = dict[str, Any]
"""The fields of `samix.mixer.v1.Cursor` by name."""

_KINDS: dict[str, type] = {
    "fingerprint": str,
    "seed": int,
    "version": str,
    "epoch": int,
    "num_batches": int,
    "batch_size": int,
    "num_consumers": int,
    "consumer": int,
    "drop_last": bool,
}


def cursor_values(message: pb.Cursor) -> Cursor:
    """Read a cursor's fields."""
    return {name: getattr(message, name) for name in _KINDS}


def cursor_message(cursor: Mapping[str, Any]) -> pb.Cursor:
    """Fill a cursor from what `cursor_values` returned, now or in another life.

    Raises:
        InputError: if it is no cursor.
    """
    if not isinstance(cursor, Mapping) or set(cursor) != set(_KINDS):
        raise InputError(f"a cursor has the fields {', '.join(_KINDS)}, got {cursor!r}; give `batch.cursor` as it was")
    for name, kind in _KINDS.items():
        if type(cursor[name]) is not kind:
            raise InputError(f"the cursor's {name} must be {kind.__name__}, got {cursor[name]!r}")
    try:
        return pb.Cursor(**cursor)
    except ValueError as error:  # a number that no cursor can have
        raise InputError(f"the cursor {dict(cursor)} is damaged ({error})") from error


def new_token() -> str:
    """Draw the token of a new consumer."""
    return uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a consumer is."""

    epoch: int
    """Number of its epoch."""
    token: str
    """Drawn once, and kept as long as the consumer lives on."""
    cursor: Cursor | None = None
    """After the last batch that was handed out; None at the start of the epoch."""

    def state(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "epoch": self.epoch,
            "token": self.token,
            "cursor": None if self.cursor is None else dict(self.cursor),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Self:
        """Read what `state` returned.

        Raises:
            InputError: if it is none.
        """
        if not isinstance(state, Mapping) or set(state) != {"epoch", "token", "cursor"}:
            raise InputError(
                f"a state has the fields epoch, token and cursor, got {state!r}; give what state_dict() gave"
            )
        epoch, token, cursor = state["epoch"], state["token"], state["cursor"]
        if type(epoch) is not int or not 0 <= epoch < 1 << 32 or not isinstance(token, str) or not token:
            raise InputError(f"the state's epoch must be a number and its token a text, got {epoch!r} and {token!r}")
        if cursor is not None and cursor_message(cursor).epoch != epoch:
            raise InputError(
                f"the state is of epoch {epoch}, its cursor of {cursor['epoch']}; give what state_dict() gave"
            )
        return cls(epoch=epoch, token=token, cursor=None if cursor is None else dict(cursor))
