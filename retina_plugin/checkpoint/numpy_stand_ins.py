"""Reads pickled ``numpy`` arrays and scalars.

A pickled ``numpy.dtype`` may describe objects that are not there, and an array may take the memory of another object
for its own. Here, a dtype is only what its name says, and every array has its own memory.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from retina_plugin.checkpoint.stand_ins import Budget, Function, Unfinished, UnsafePickle, are_sizes


class Dtype(Unfinished):
    """Stands for ``numpy.dtype``, and takes nothing of its pickled state but the byte order."""

    __slots__ = ("_dtype",)

    def __init__(self, name: Any):
        super().__init__()
        if not isinstance(name, str):
            raise UnsafePickle("it has an array of a type without a name")
        if not re.fullmatch(r"[<>=|]?[biufcSUO]\d{0,5}", name):
            raise UnsafePickle(f"it has an array of type {name[:40]!a}, which are no plain numbers")
        self._dtype = np.dtype(name)

    def _take(self, budget: Budget, state: Any) -> None:
        byte_order, *structure = state[1:5]
        if any(part is not None for part in structure):
            raise UnsafePickle("it has an array of structures, not of plain numbers")
        if byte_order == ">":
            self._dtype = self._dtype.newbyteorder(">")
        elif byte_order == "<":
            self._dtype = self._dtype.newbyteorder("<")

    def result(self) -> np.dtype:
        """Return the dtype of numbers or text.

        Raises:
            UnsafePickle: it is of Python objects.
        """
        if self._dtype.hasobject:
            raise UnsafePickle("it has an array of Python objects, not of numbers")
        return self._dtype


class Array(Unfinished):
    """Stands for ``numpy.ndarray``."""

    __slots__ = ("_array",)

    def __init__(self) -> None:
        super().__init__()
        self._array: np.ndarray | None = None

    def _take(self, budget: Budget, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self._array = _copy_array(budget, data, dtype, shape, "F" if is_fortran is True else "C")

    def result(self) -> np.ndarray:
        """Return the array.

        Raises:
            UnsafePickle: the pickle gave it no data.
        """
        if self._array is None:
            raise UnsafePickle("it has an array without data")
        return self._array


def _copy_array(budget: Budget, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Return a new array in this machine's byte order."""
    dtype, data = _dtype_of(dtype), _as_bytes(budget, data)
    if not are_sizes(shape):
        raise UnsafePickle("it has an array whose shape is not a tuple of numbers")
    if dtype.itemsize * math.prod(shape) != len(data):
        raise UnsafePickle(f"it has an array of shape {shape[:5]} with {len(data)} bytes")
    budget.spend_data(len(data))
    if not data:
        return np.empty(shape, dtype.newbyteorder("="))
    return np.frombuffer(data, dtype).reshape(shape, order=order).astype(dtype.newbyteorder("="), order="K")


def _dtype_of(dtype: Any) -> np.dtype:
    if not isinstance(dtype, Dtype):
        raise UnsafePickle("it has an array without a type")
    return dtype.result()


def _as_bytes(budget: Budget, data: Any) -> bytes | bytearray:
    if isinstance(data, str):  # Python 2 had one type for both
        budget.spend_data(len(data))
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise UnsafePickle("it has an array whose data are no bytes")
    return data


def _dtype(budget: Budget, name: Any, align: Any = False, copy: Any = False) -> Dtype:
    return Dtype(name)  # its state may follow


def _reconstruct(budget: Budget, array_class: Any, shape: Any, typecode: Any) -> Array:
    return Array()  # its state follows


def _scalar(budget: Budget, dtype: Any, data: Any) -> Any:
    return _copy_array(budget, data, dtype, (), "C")[()]


def _from_buffer(budget: Budget, data: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> np.ndarray:
    array = _copy_array(budget, data, dtype, shape, order if order in ("C", "F") else "C")  # protocol 5
    return array.transpose(axis_order) if order == "K" and axis_order is not None else array


def _not_made(budget: Budget, *args: Any) -> None:
    raise UnsafePickle("it makes an array in another way than numpy")


_CALLS: list[tuple[str, Callable[..., Any]]] = [
    ("numpy.dtype", _dtype),
    ("numpy.ndarray", _not_made),
    *((f"numpy.{core}.multiarray._reconstruct", _reconstruct) for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray.scalar", _scalar) for core in ("core", "_core")),
    *((f"numpy.{core}.numeric._frombuffer", _from_buffer) for core in ("core", "_core")),
]
#: Name with module -> what stands for it.
NUMPY: dict[str, Function] = {name: Function(name, call) for name, call in _CALLS}
