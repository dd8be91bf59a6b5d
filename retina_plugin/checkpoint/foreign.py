"""Objects that trainings save beside their weights: read as inert placeholders, by name, without importing anything.

A checkpoint of another framework has settings, histories and schedules of classes that are not weights. A placeholder
takes whatever the pickle gives it, and keeps nothing but the name of the class.
"""

import re
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from retina_plugin.checkpoint.stand_ins import Budget, ForbiddenGlobal, Function

_MODULE_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
# Also its methods, classes within it, and Cython's constructors.
_CLASS_NAME = re.compile(r"(__pyx_unpickle_)?_*[A-Z]\w*(\.\w+)*", re.ASCII)
# Values of the standard library. Its other classes start processes, open files and connections.
_INERT_NAMES = frozenset(
    (
        *("argparse.Namespace", "types.SimpleNamespace", "collections.deque", "random.Random", "uuid.UUID"),
        *("decimal.Decimal", "fractions.Fraction", "copyreg._reconstructor"),
        *(f"builtins.{name}" for name in ("bool", "float", "int", "object", "range", "slice", "str")),
        *(f"numpy.random._pickle.__{kind}_ctor" for kind in ("bit_generator", "generator", "randomstate")),
    )
)
_INERT_VALUE = re.compile(
    r"(datetime|pathlib|pathlib\._local|typing)\.\w+|numpy\.(bool|u?int|float|complex)\w*", re.ASCII
)


class Foreign:
    """Stands for an object that is not read.

    Attributes:
        kind: the name of its class, with its module, or what else it is.
    """

    __slots__ = ("kind",)

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}, not read>"


def foreign_class(module: str, name: str) -> Function | None:
    """Return what stands for a class whose objects are read as placeholders; None for names that must be refused.

    These are classes outside the standard library, by their names in CapWords, and values of the standard library.
    Functions are refused, so that a hostile file is called one.
    """
    full_name = f"{module}.{name}"
    is_class = (
        _MODULE_NAME.fullmatch(module)
        and module.partition(".")[0] not in sys.stdlib_module_names
        and _CLASS_NAME.fullmatch(name)
    )
    is_value = full_name in _INERT_NAMES or _INERT_VALUE.fullmatch(full_name)
    return Function(full_name, lambda budget, *args: _instance(full_name, args)) if is_class or is_value else None


def foreign_kinds(value: Any) -> list[str]:
    """Return the kinds of the placeholders within containers, each once."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    pending = deque([value])
    while pending:
        item = pending.popleft()
        if isinstance(item, Foreign):
            found[item.kind] = None
        elif isinstance(item, (Mapping, list, tuple, set, frozenset)) and id(item) not in seen:
            seen.add(id(item))
            pending += [*item.keys(), *item.values()] if isinstance(item, Mapping) else item
    return list(found)


def _instance(full_name: str, args: tuple) -> Foreign:
    if full_name == "copyreg._reconstructor" and args and isinstance(args[0], Function):
        full_name = args[0].name  # how protocols 0 and 1 make an object of a class
    return Foreign(full_name)


def get_attribute(budget: Budget, owner: Any, name: Any) -> Foreign:
    """Stand for ``getattr``, by which methods of classes are pickled.

    Raises:
        ForbiddenGlobal: ``owner`` is no placeholder.
    """
    if isinstance(owner, Foreign):
        return owner
    if isinstance(owner, Function) and foreign_class(*owner.name.rpartition(".")[::2]):
        return Foreign(owner.name)
    raise ForbiddenGlobal("builtins.getattr")
