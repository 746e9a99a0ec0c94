"""Cursors and states as plain values: there and back, and nothing else is taken for one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samix.client.datasets.cursor import Place, cursor_message, cursor_values, new_token
from samix.errors import InputError
from samix.mixer.v1 import dataset_pb2 as pb

UINT32, UINT64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
TEXT = st.text(max_size=20)
CURSORS = st.builds(
    pb.Cursor,
    fingerprint=TEXT,
    seed=UINT64,
    version=TEXT,
    epoch=UINT32,
    num_batches=UINT64,
    batch_size=UINT32,
    num_consumers=UINT32,
    consumer=UINT32,
    drop_last=st.booleans(),
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=11), inner, max_size=3),
)


@given(CURSORS)
def test_a_cursor_survives_json(cursor: pb.Cursor):
    """A cursor is the same after JSON, field by field, and all fields of the message are in it."""
    values = json.loads(json.dumps(cursor_values(cursor)))

    assert cursor_message(values) == cursor
    assert set(values) == {field.name for field in pb.Cursor.DESCRIPTOR.fields}


@given(CURSORS)
def test_a_place_survives_json(cursor: pb.Cursor):
    """A place is the same after JSON."""
    place = Place(epoch=cursor.epoch, token=new_token(), cursor=cursor_values(cursor))

    assert Place.of_state(json.loads(json.dumps(place.state()))) == place


@given(CURSORS, st.sampled_from(sorted(field.name for field in pb.Cursor.DESCRIPTOR.fields)), JUNK)
def test_a_spoiled_cursor_is_an_input_error(cursor: pb.Cursor, name: str, junk: Any):
    """Whatever stands in a field of a cursor, it is a cursor or an InputError, never another error."""
    spoiled = {**cursor_values(cursor), name: junk}

    try:
        message = cursor_message(spoiled)
    except InputError:
        return

    assert cursor_values(message) == spoiled


@given(JUNK)
def test_junk_is_no_cursor_and_no_state(junk: Any):
    """What is no cursor and no state at all is refused with its value."""
    for read in (cursor_message, Place.of_state):
        with pytest.raises(InputError, match="give"):
            read(junk)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 1}, "of epoch 1, its cursor of 0"),
        ({"epoch": -1}, "epoch must be a number"),
        ({"token": ""}, "its token a text"),
        ({"token": 3}, "its token a text"),
        ({"cursor": []}, "a cursor has the fields"),
    ],
)
def test_a_spoiled_state_is_refused(change: dict[str, Any], message: str):
    """A state whose parts do not belong together is refused by value."""
    state = Place(epoch=0, token="t", cursor=cursor_values(pb.Cursor())).state()

    with pytest.raises(InputError, match=message):
        Place.of_state(state | change)
