"""Reads pickles of numbers, tensors and plain containers. Nothing that they name is imported or called.

A pickle is a program. It names functions and classes ("globals"), and calls them while it is read. Here, each name that
weights need is looked up in one table, :data:`ADMITTED`, of functions of this package that take the place of the named
ones. Classes of objects beside the weights become placeholders (:mod:`retina_plugin.checkpoint.foreign`), and the first
other name ends the reading. Reading a file of somebody else then runs nobody else's code.

An instruction of the program can change nothing but a plain container, or an object whose state follows, once.
"""

import collections
import os
import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import IO, Any

from retina_plugin.checkpoint.containers import CONTAINERS, check_keys, finish, set_items
from retina_plugin.checkpoint.foreign import Foreign, foreign_class, get_attribute
from retina_plugin.checkpoint.numpy_stand_ins import NUMPY
from retina_plugin.checkpoint.stand_ins import Budget, ForbiddenGlobal, Function, Unfinished, UnsafePickle
from retina_plugin.checkpoint.torch_stand_ins import TORCH, torch_global

#: Name with module -> what is called for it.
ADMITTED: dict[str, Function] = {**CONTAINERS, **NUMPY, **TORCH}

_LONGEST_NAME = 300
_GETATTR = Function("builtins.getattr", get_attribute)
# Bytes that one-byte instructions allocate. The others are not longer than eight times what they take of the file.
_COSTS = {
    **dict.fromkeys((pickle.MARK, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.LIST, pickle.DICT), 72),
    **dict.fromkeys((pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3), 64),
    **dict.fromkeys((pickle.EMPTY_SET, pickle.FROZENSET), 216),
    **dict.fromkeys((pickle.REDUCE, pickle.NEWOBJ, pickle.OBJ, pickle.NEWOBJ_EX, pickle.MEMOIZE), 128),
}


def load(file: IO[bytes], *, budget: Budget | None = None, persistent_load: Callable[[Any], Any] | None = None) -> Any:
    """Read one pickle of any protocol, written by Python 2 or 3.

    Args:
        file: the file, which can seek; it is left behind the pickle.
        budget: what may be allocated; None for that of a file of what is left of this one.
        persistent_load: called with each persistent id; None where there are none.

    Returns:
        What was pickled, made of numbers, text, lists, tuples, dicts, sets, tensors, ``numpy`` arrays and scalars in
        this machine's byte order, and of placeholders (``Foreign``).

    Raises:
        ForbiddenGlobal: it names something else. Nothing that it names has been called, here or before.
        UnsafePickle: it has an array of objects, or does what no pickle of weights does.
        Exception: of many kinds, where this is no pickle or a damaged one.
    """
    reader = _CompleteReads(file)
    return finish(_Unpickler(reader, budget or Budget(reader.left), persistent_load).load())


class _CompleteReads:
    """A binary file that raises ``EOFError`` where it ends within what is read, before anything is allocated for it."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        start = file.tell()
        self.left = file.seek(0, os.SEEK_END) - start
        file.seek(start)

    def read(self, size: int) -> bytes:
        data = self._file.read(size) if size <= self.left else b""
        if len(data) < size:
            raise EOFError("it ends too early")
        self.left -= size
        return data

    def readline(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ends too early")
        self.left -= len(line)
        return line


def _with_cost(load_opcode: Callable[[Any], None], cost: int) -> Callable[[Any], None]:
    def load(self: Any) -> None:
        self._budget.spend(cost)
        load_opcode(self)

    return load


_PythonUnpickler: Any = pickle._Unpickler  # private, and without types


class _Unpickler(_PythonUnpickler):
    """The unpickler in Python: its memo is a dict. That in C allocates as many entries as a (damaged) file asks for."""

    def __init__(self, file: _CompleteReads, budget: Budget, persistent_load: Callable[[Any], Any] | None):
        super().__init__(file, encoding="latin1")
        self._budget = budget
        self._undecided: str | None = None  # a name that is admitted only with certain arguments
        if persistent_load is not None:
            self.persistent_load = persistent_load

    def find_class(self, module, name):
        if len(module) + len(name) > _LONGEST_NAME:  # reading it again and again would take for ever
            raise ForbiddenGlobal(f"a function or class by {len(module) + len(name)} letters")
        # Up to protocol 2, modules have their names of Python 2.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full_name = f"{module}.{name}"
        if full_name == _GETATTR.name:
            self._undecided = full_name
            return _GETATTR
        found = ADMITTED.get(full_name) or torch_global(module, name) or foreign_class(module, name)
        if found is None:
            printable = full_name if re.fullmatch(r"[\w.<>]+", full_name) else ascii(full_name)
            raise ForbiddenGlobal(self._undecided or printable)
        return found

    def _call(self, function, args):
        if function is _GETATTR:
            self._undecided = None
        if isinstance(function, Foreign):  # a method of a class that is not read
            return function
        if not isinstance(function, Function) or type(args) is not tuple:
            raise UnsafePickle(f"it calls a {type(function).__name__}")
        return function(self._budget, *args)

    def _instantiate(self, klass, args):
        self.append(self._call(klass, tuple(args)))

    def _load_reduce(self):
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _load_newobj_ex(self):
        self.stack.pop()  # only classes that are not read have keywords
        self._load_reduce()
        if not isinstance(self.stack[-1], Foreign):
            raise UnsafePickle("it calls with keywords what has none")

    def _load_build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Unfinished):
            target.complete(self._budget, state)
        elif type(target) is collections.OrderedDict and type(state) is dict:
            vars(target).update(_metadata=state.get("_metadata"))  # of a module's state_dict()
        elif not isinstance(target, Foreign):
            raise UnsafePickle(f"it sets the state of a {type(target).__name__}")

    def _extend(self, items):
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise UnsafePickle(f"it appends to a {type(target).__name__}")

    def _set_items(self, items):
        if not isinstance(self.stack[-1], Foreign):
            set_items(self.stack[-1], items)

    def _load_append(self):
        self._extend([self.stack.pop()])

    def _load_appends(self):
        self._extend(self.pop_mark())

    def _load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _load_setitems(self):
        self._set_items(self.pop_mark())

    def _load_additems(self):
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is set:
            check_keys(items)
            target.update(items)
        elif not isinstance(target, Foreign):
            raise UnsafePickle(f"it adds to a {type(target).__name__}")

    def _load_dict(self):
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _load_frozenset(self):
        items = self.pop_mark()
        check_keys(items)
        self.append(frozenset(items))

    def _load_bytearray8(self):
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch: Any = {
        **_PythonUnpickler.dispatch,
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_reduce,
        pickle.NEWOBJ_EX[0]: _load_newobj_ex,
        pickle.BUILD[0]: _load_build,
        pickle.APPEND[0]: _load_append,
        pickle.APPENDS[0]: _load_appends,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.ADDITEMS[0]: _load_additems,
        pickle.DICT[0]: _load_dict,
        pickle.FROZENSET[0]: _load_frozenset,
        pickle.BYTEARRAY8[0]: _load_bytearray8,
    }
    # Integers of more than 255 bytes, registered extensions, and buffers outside the file.
    for opcode in (pickle.LONG4, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        del dispatch[opcode[0]]
    for opcode, cost in _COSTS.items():
        dispatch[opcode[0]] = _with_cost(dispatch[opcode[0]], cost)
