"""Unpickling that builds arrays of numbers and plain containers, and nothing else.

A pickle is a program. It names functions and classes ("globals"), and calls them while it is read. Here, every name is
looked up in one table, :data:`ADMITTED`, and the first that is not in it ends the reading. Reading a file of somebody
else then runs nobody else's code.

The entries for numpy are not numpy's own: a pickled ``numpy.dtype`` may describe objects that are not there, and an
array of such a dtype takes bytes of the file for their addresses.
"""

import collections
import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import IO, Any

import numpy as np


class UnsafePickle(pickle.UnpicklingError):
    """A pickle that is more than numbers, text and containers of them."""


class ForbiddenGlobal(UnsafePickle):
    """A pickle names a function or class that is not admitted: ``name``, with its module."""

    def __init__(self, name: str):
        super().__init__(f"it names {name}")
        self.name = name


def load(file: IO[bytes]) -> Any:
    """Read one pickle of any protocol, written by Python 2 or 3, with arrays of numbers, bool or text.

    Returns:
        What was pickled, made of numbers, text, lists, tuples, dicts, sets and ``numpy`` arrays and scalars in this
        machine's byte order.

    Raises:
        ForbiddenGlobal: it names something else; nothing has been called.
        UnsafePickle: it has an array of objects.
        Exception: of many kinds, where this is no pickle or a damaged one.
    """
    return without_stand_ins(_Unpickler(file).load())


def first_forbidden_global(file: IO[bytes], is_admitted: Callable[[str], bool], num_pickles: int = 1) -> str | None:
    """Find the first global of consecutive pickles that is not admitted, in the order of reading, without calling any.

    Args:
        file: the file.
        is_admitted: called with a name and its module.
        num_pickles: how many pickles to read. Reading stops before where they end or are damaged.

    Returns:
        The name with its module, or None.
    """
    try:
        for _ in range(num_pickles):
            _Walker(file, is_admitted).load()
    except ForbiddenGlobal as error:
        return error.name
    except Exception:  # the end of what can be read
        return None
    return None


def without_stand_ins(value: Any) -> Any:
    """Turn this module's stand-ins for arrays within containers into ``numpy`` arrays.

    Dicts and lists change in place. The arrays are writable, in this machine's byte order.
    """
    if isinstance(value, dict):
        for key in list(value):
            value[key] = without_stand_ins(value[key])
    elif isinstance(value, list):
        value[:] = map(without_stand_ins, value)
    elif type(value) is tuple:
        value = tuple(map(without_stand_ins, value))
    elif isinstance(value, np.ndarray):
        value = value.view(np.ndarray)
        value = value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable)
    return value


class _CompleteReads:
    """A binary file that raises ``EOFError`` where it ends within what is read."""

    def __init__(self, file):
        self._file = file

    def read(self, size):
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("it ends too early")
        return data

    def readline(self):
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ends too early")
        return line


class _PythonUnpickler(pickle._Unpickler):
    """The unpickler in Python: its memo is a dict. That in C allocates as many entries as a (damaged) file asks for."""

    def __init__(self, file):
        super().__init__(_CompleteReads(file), encoding="latin1")


class _Unpickler(_PythonUnpickler):
    def find_class(self, module, name):
        try:
            return ADMITTED[f"{module}.{name}"]
        except KeyError:
            raise ForbiddenGlobal(_full_name(module, name)) from None


class _Walker(_PythonUnpickler):
    """Goes through a pickle with a thing that takes every call in place of every admitted global."""

    def __init__(self, file, is_admitted):
        super().__init__(file)
        self._is_admitted = is_admitted

    def find_class(self, module, name):
        full_name = _full_name(module, name)
        if not self._is_admitted(full_name):
            raise ForbiddenGlobal(full_name)
        return _Anything

    def persistent_load(self, key):
        return None


def _full_name(module, name):
    # Up to protocol 2, modules have their names of Python 2.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


class _Sealed(type):
    """Of classes that a pickle can reach: it may set attributes of whatever it reaches, and must not of these."""

    def __setattr__(cls, name, value):
        raise UnsafePickle(f"it sets {name} of {cls.__name__}")


class _Anything(metaclass=_Sealed):
    __slots__ = ()

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __call__(self, *args, **kwargs):
        return self

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


class _Dtype(metaclass=_Sealed):
    """Stands for ``numpy.dtype``, and takes nothing of its pickled state but the byte order."""

    __slots__ = ("_dtype",)

    def __init__(self, name, align=False, copy=False):
        if not re.fullmatch(r"[<>=|]?[biufcSUO]\d*", name):
            raise UnsafePickle(f"it has an array of type {name[:40]!r}, which are no plain numbers")
        self._dtype = np.dtype(name)

    def __setstate__(self, state):
        byte_order, *structure = state[1:5]
        if any(part is not None for part in structure):
            raise UnsafePickle("it has an array of structures, not of plain numbers")
        if byte_order in ("<", ">"):
            self._dtype = self._dtype.newbyteorder(byte_order)

    @staticmethod
    def of_numbers(dtype):
        """The ``numpy.dtype``. What a pickle gives in place of a ``_Dtype`` has no attribute of its name."""
        if dtype._dtype.hasobject:
            raise UnsafePickle("it has an array of Python objects, not of numbers")
        return dtype._dtype


class _Array(np.ndarray, metaclass=_Sealed):
    """Stands for ``numpy.ndarray``."""

    __slots__ = ()

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls, 0, np.uint8)

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        super().__setstate__((1, shape, _Dtype.of_numbers(dtype), is_fortran, _as_bytes(data)))


class _Function:
    """A function without attributes that can be set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args):
        return self._function(*args)

    def __setattr__(self, name, value):
        raise UnsafePickle(f"it sets {name} of {self._function.__name__}")


@_Function
def _reconstruct(array_class, shape, typecode):
    return _Array()  # its state follows


@_Function
def _scalar(dtype, data):
    return np.frombuffer(_as_bytes(data), _Dtype.of_numbers(dtype), count=1)[0]


@_Function
def _from_buffer(data, dtype, shape, order, axis_order=None):  # protocol 5
    array = np.frombuffer(data, _Dtype.of_numbers(dtype))
    if order == "K" and axis_order is not None:
        return array.reshape(shape).transpose(axis_order)
    return array.reshape(shape, order=order)


@_Function
def _encode(text, encoding):  # how bytes are pickled up to protocol 2
    if encoding not in ("latin1", "latin-1"):
        raise UnsafePickle(f"it has bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _as_bytes(data):
    if isinstance(data, str):  # Python 2 had one type for both
        return data.encode("latin1")
    return data if isinstance(data, bytes) else bytes(memoryview(data))


_CONTAINERS = (bytearray, bytes, complex, dict, frozenset, list, set, tuple)
#: Name with module -> what is called for it.
ADMITTED: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": collections.defaultdict,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    **{f"{module}.{c.__name__}": c for module in ("builtins", "__builtin__") for c in _CONTAINERS},
}
