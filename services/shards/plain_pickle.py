"""Loads pickles of plain data, also those of Python 2, and runs nothing that they name.

A pickle may ask for any function to be called. Here it gets the few names that numpy's arrays need, and behind them
stand functions of ours: numpy's own believe what a pickle says of an array's memory, and crash where it is wrong.
"""

import io
import pickle
from typing import Any

import numpy as np

# All that Python's unpickler and the functions below raised for damaged files.
_DAMAGE = (AttributeError, EOFError, IndexError, KeyError, MemoryError, OverflowError)
_DAMAGE_OF_VALUES = (TypeError, ValueError, RecursionError)


class PickledArray:
    """A numpy array as it was pickled."""

    def __init__(self) -> None:
        self._shape: object = None
        self._is_byte = False
        self._is_fortran: object = False
        self._content: object = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take what numpy puts into a pickle: version, shape, type, whether columns come first, and content."""
        _version, self._shape, kind, self._is_fortran, self._content = state
        self._is_byte = isinstance(kind, _PickledType) and kind.is_byte

    def as_rows(self, width: int) -> np.ndarray | None:
        """Return uint8 [N, width], or None if it is anything else."""
        content = self._content
        if not self._is_byte or self._is_fortran or not isinstance(content, bytes | bytearray):
            return None
        if len(content) % width or self._shape != (len(content) // width, width):
            return None
        return np.frombuffer(content, np.uint8).reshape(-1, width)


def load_plain(content: bytes) -> Any:
    """Load bytes, numbers, lists, dicts and arrays; strings of Python 2 become bytes.

    Raises:
        UnpicklingError: if the pickle is damaged or asks for anything else.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except (*_DAMAGE, *_DAMAGE_OF_VALUES) as err:
        raise pickle.UnpicklingError(str(err) or type(err).__name__) from err


class _PickledType:
    """Stands in for numpy.dtype."""

    def __init__(self, name: object, *_flags: object) -> None:
        self.is_byte = name in ("u1", b"u1")

    def __setstate__(self, _state: object) -> None:
        """Pass over the byte order: single bytes have none."""


def _reconstruct(_kind: object, _shape: object, _type: object) -> PickledArray:
    """Stand in for how numpy begins to load an array; its state follows."""
    return PickledArray()


def _from_buffer(content: object, kind: object, shape: object, order: object) -> PickledArray:
    """Stand in for how numpy loads an array of pickle protocol 5."""
    array = PickledArray()
    array.__setstate__((1, shape, kind, order != "C", content))
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for the codec by which Python 3 writes bytes into a pickle that Python 2 can read."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Finds what stands in for numpy's names, and nothing else."""

    _ALLOWED = {  # noqa: RUF012 - never changed
        # numpy's own name for these moved between its versions.
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("_codecs", "encode"): _encode,
        ("numpy", "ndarray"): PickledArray,
        ("numpy", "dtype"): _PickledType,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._ALLOWED[module, name]
