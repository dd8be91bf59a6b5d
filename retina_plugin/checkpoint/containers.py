"""Reads pickled containers: their keys are scalars, and what they hold is turned into what it stands for."""

import collections
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from retina_plugin.checkpoint.foreign import Foreign
from retina_plugin.checkpoint.stand_ins import Budget, Function, Unfinished, UnsafePickle
from retina_plugin.checkpoint.torch_stand_ins import Storage

DICTS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_ITEM_SIZE = 64  # bytes, about what one takes in a dict or set
_KEY_TYPES = (str, bytes, float, bool, type(None), np.generic, torch.dtype, torch.device, Foreign)
_FACTORIES: dict[str, Any] = {f"builtins.{kind.__name__}": kind for kind in (dict, float, int, list, set, str, tuple)}


def check_keys(keys: Iterable[Any]) -> None:
    """Check that keys of a dict or items of a set take no time to hash: scalars, and short tuples of them.

    The hash of nested tuples is computed anew each time, level by level; that of large integers is easy to repeat.

    Raises:
        UnsafePickle: a key is something else.
    """
    for key in keys:
        if type(key) is str:
            continue
        if type(key) is tuple and len(key) <= 8 and not any(type(part) is tuple for part in key):
            check_keys(key)
        elif type(key) is int:
            if not -(2**63) <= key < 2**63:
                raise UnsafePickle("it has an integer key of more than 64 bits")
        elif not isinstance(key, _KEY_TYPES):
            raise UnsafePickle(f"it has a key that is a {type(key).__name__}")


def set_items(mapping: Any, items: list[Any]) -> None:
    """Put keys and values, by turns, into a plain dict.

    Raises:
        UnsafePickle: it is no dict, or a key is no scalar.
    """
    if type(mapping) not in DICTS:
        raise UnsafePickle(f"it sets an item of a {type(mapping).__name__}")
    if len(items) % 2:
        raise UnsafePickle("it has a key without a value")
    check_keys(items[::2])
    for key, value in zip(items[::2], items[1::2], strict=True):
        mapping[key] = value


def finish(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Turn what stands for something into that, within containers.

    Dicts and lists change in place. What only stood for a class becomes a placeholder.

    Args:
        value: what was read.
        done: by identity, what has been turned already; containers may occur many times, also within themselves.

    Raises:
        UnsafePickle: something lacks its state.
    """
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Unfinished):
        return value.result()
    if isinstance(value, Function):
        return Foreign(value.name)
    if isinstance(value, Storage):
        return Foreign("storage")
    if type(value) in DICTS:
        done[id(value)] = value
        for key, item in list(value.items()):
            value[key] = finish(item, done)
        if hasattr(value, "_metadata"):
            value._metadata = _versions(value._metadata)
    elif type(value) is list:
        done[id(value)] = value
        value[:] = [finish(item, done) for item in value]
    elif type(value) is tuple:
        done[id(value)] = tuple(finish(item, done) for item in value)
        return done[id(value)]
    return value


def _versions(metadata: Any) -> collections.OrderedDict:
    """The format versions of a state dict's modules; anything else in their place would fail within the loading."""
    if not isinstance(metadata, dict):
        return collections.OrderedDict()
    return collections.OrderedDict(
        (name, {"version": entry["version"]})
        for name, entry in metadata.items()
        if isinstance(name, str) and isinstance(entry, dict) and type(entry.get("version")) is int
    )


def _take(budget: Budget, kind: type, args: tuple, allowed: tuple[type, ...]) -> Any:
    """The items for a container, from at most one argument."""
    if len(args) > 1 or not all(type(arg) in allowed for arg in args):
        raise UnsafePickle(f"it makes a {kind.__name__} of something else")
    budget.spend(_ITEM_SIZE * sum(map(len, args)))
    return args[0] if args else ()


def _sequence(kind: type) -> Any:
    return lambda budget, *args: kind(_take(budget, kind, args, (list, tuple, set, frozenset)))


def _set(kind: type) -> Any:
    def make(budget: Budget, *args: Any) -> Any:
        items = _take(budget, kind, args, (list, tuple, set, frozenset))
        check_keys(items)
        return kind(items)

    return make


def _mapping(kind: type) -> Any:
    def make(budget: Budget, *args: Any) -> Any:
        items = _take(budget, kind, args, (*DICTS, list))
        if isinstance(items, list):  # of pairs: Python 2
            if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in items):
                raise UnsafePickle(f"it makes a {kind.__name__} of something else than pairs")
            check_keys(pair[0] for pair in items)
        made = kind()
        made.update(items)
        return made

    return make


def _defaultdict(budget: Budget, *args: Any) -> Any:
    factory, items = (_FACTORIES.get(getattr(args[0], "name", "")) if args else None), args[1:]
    return collections.defaultdict(factory, _mapping(dict)(budget, *items))


def _counter(budget: Budget, *args: Any) -> Any:
    counter: Any = collections.Counter()
    dict.update(counter, _mapping(dict)(budget, *args))
    return counter


def _bytes(kind: type) -> Any:
    def make(budget: Budget, *args: Any) -> Any:
        if not args:
            return kind()
        if type(args[0]) is str and args[1:] in (("latin1",), ("latin-1",)):
            return kind(_encode(budget, *args))
        if type(args[0]) not in (bytes, bytearray) or len(args) > 1:
            raise UnsafePickle(f"it makes {kind.__name__} of something else than bytes")
        budget.spend_data(len(args[0]))
        return kind(args[0])

    return make


def _encode(budget: Budget, text: Any, encoding: Any = None) -> bytes:  # how bytes are pickled up to protocol 2
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise UnsafePickle("it has bytes in another encoding than latin1")
    budget.spend_data(len(text))
    return text.encode("latin1")


def _complex(budget: Budget, real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise UnsafePickle("it makes a complex number of something else than numbers")
    return complex(real, imaginary)


_BUILTINS = [
    *((kind, _bytes(kind)) for kind in (bytearray, bytes)),
    *((kind, _sequence(kind)) for kind in (list, tuple)),
    *((kind, _set(kind)) for kind in (frozenset, set)),
    *((complex, _complex), (dict, _mapping(dict))),
]
#: Name with module -> what stands for it.
CONTAINERS: dict[str, Function] = {
    name: Function(name, call)
    for name, call in [
        ("_codecs.encode", _encode),
        ("collections.Counter", _counter),
        ("collections.OrderedDict", _mapping(collections.OrderedDict)),
        ("collections.defaultdict", _defaultdict),
        *((f"builtins.{kind.__name__}", make) for kind, make in _BUILTINS),
    ]
}
