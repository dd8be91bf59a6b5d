"""What a pickle gets in place of the functions and classes that it names."""

import pickle
from collections.abc import Callable
from typing import Any

_ALLOWED_GROWTH = 32  # bytes for each byte of the file; a list of two numbers takes ten times as many as its pickle
_ALLOWED_ALWAYS = 2**20
_DATA_COST = 4  # arrays and tensors: a file may refer to all its data as often as _ALLOWED_GROWTH / _DATA_COST times

_MAX_DIMENSIONS = 64  # numpy's and torch's own limit


class UnsafePickle(pickle.UnpicklingError):
    """A pickle that is more than numbers, text and containers of them."""


class ForbiddenGlobal(UnsafePickle):
    """A pickle names a function or class that is not admitted: ``name``, with its module."""

    def __init__(self, name: str):
        super().__init__(f"it names {name}")
        self.name = name


class Budget:
    """Bounds the memory that reading a file may take, by the size of the file."""

    def __init__(self, file_size: int):
        self._left = _ALLOWED_GROWTH * file_size + _ALLOWED_ALWAYS

    def spend(self, num_bytes: int) -> None:
        """Count memory before it is allocated.

        Raises:
            UnsafePickle: it is more than the file may take.
        """
        self._left -= num_bytes
        if self._left < 0:
            raise UnsafePickle("it would take many times more memory than the file has bytes")

    def spend_data(self, num_bytes: int) -> None:
        """Count the bytes of an array, a tensor or text."""
        self.spend(_DATA_COST * num_bytes)


class Function:
    """Stands for a function or class: it can be called, and nothing of it can be changed."""

    __slots__ = ("_call", "name")
    name: str
    _call: Callable[..., Any]

    def __init__(self, name: str, call: Callable[..., Any]):
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_call", call)

    def __call__(self, budget: Budget, *args: Any) -> Any:
        return self._call(budget, *args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafePickle(f"it sets {name} of {self.name}")


class Unfinished:
    """Stands for an object whose state follows in the pickle, once."""

    __slots__ = ("_is_complete",)

    def __init__(self) -> None:
        self._is_complete = False

    def complete(self, budget: Budget, state: Any) -> None:
        """Take the pickled state.

        Raises:
            UnsafePickle: the object has a state already: another one would change what was made of the first.
        """
        if self._is_complete:
            raise UnsafePickle("it gives an object two states")
        self._is_complete = True
        self._take(budget, state)

    def result(self) -> Any:
        """Return the object itself."""
        raise NotImplementedError

    def _take(self, budget: Budget, state: Any) -> None:
        raise NotImplementedError


def are_sizes(values: Any) -> bool:
    """Return whether this is a shape: a short tuple of numbers that are not negative, nor larger than a memory."""
    return (
        isinstance(values, tuple)
        and len(values) <= _MAX_DIMENSIONS
        and all(type(value) is int and 0 <= value < 2**62 for value in values)
    )
