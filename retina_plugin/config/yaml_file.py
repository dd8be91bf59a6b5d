"""Reads YAML configuration files without running code that they name."""

import copy
import logging
import os
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager

from retina_plugin.config.arithmetic import evaluate
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.files import identify_file, require_regular_file

UNSAFE_FLAG = "--allow-unsafe-yaml"
_BASE = "_BASE_"
_PYTHON_TAG = "tag:yaml.org,2002:python/"
_MAX_BYTES = 2**20
_MAX_VALUES = 100_000


def read_yaml(path: str | os.PathLike, *, allow_unsafe: bool = False) -> dict[str, Any]:
    """Read a configuration file and those that its ``_BASE_`` names, whose values it overrides.

    Args:
        path: a path, or an address that Detectron2's ``PathManager`` handles.
        allow_unsafe: run what tags such as ``!!python/object/apply`` name, with a warning.

    Returns:
        Nested dicts of numbers, text, lists and tuples.

    Raises:
        ConfigError: a file is missing, not a configuration, names code, or is its own base. The message holds nothing
            of the file's content but such tags.
    """
    return _Reader(allow_unsafe).read(os.fspath(path))


def parse_yaml(text: str | bytes, source: str, *, allow_unsafe: bool = False) -> dict[str, Any]:
    """Parse the text of a configuration file, with ``source`` as its name in messages; see :func:`read_yaml`.

    Tags: ``!!python/tuple`` is a tuple. ``!!python/object/apply:eval`` over plain arithmetic, as in Detectron2's own
    files, is computed by :func:`~retina_plugin.config.arithmetic.evaluate`.
    """
    try:
        if allow_unsafe:
            logging.getLogger(__name__).warning("%s is read with %s: the code that it names runs.", source, UNSAFE_FLAG)
            values = yaml.unsafe_load(text)
        else:
            values = yaml.load(text, Loader=_ConfigLoader)
    except _UnsafeTag as error:
        raise ConfigError([
            f"{source}, line {error.line}: the tag {error.tag} is refused{error.reason}: such a tag can run code when "
            "the file is read. Nothing was run. Write the value itself in its place or, if you trust whoever wrote "
            f"the file, add {UNSAFE_FLAG}"
        ]) from None  # fmt: skip
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError([f"{source} is not YAML{where}"]) from None
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError, MemoryError):
        raise ConfigError([f"{source} is not a YAML file of text"]) from None
    if not isinstance(values, dict):
        raise ConfigError([f"{source} is not a YAML mapping of keys to values"])
    _check_size(values, source)
    return values


class _UnsafeTag(Exception):
    def __init__(self, node: yaml.Node, reason: str = ""):
        super().__init__(node.tag)
        self.tag = "!!" + node.tag.removeprefix("tag:yaml.org,2002:")
        self.line = node.start_mark.line + 1
        self.reason = reason


class _ConfigLoader(yaml.SafeLoader):
    """Builds plain values; every tag beyond YAML's own is refused."""


def _tuple(loader: _ConfigLoader, node: yaml.SequenceNode) -> tuple:
    return tuple(loader.construct_sequence(node, deep=True))


def _arithmetic(loader: _ConfigLoader, node: yaml.Node) -> Any:
    arguments = loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else []
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        raise _UnsafeTag(node)
    try:
        return evaluate(arguments[0])
    except ValueError as error:
        raise _UnsafeTag(node, f", because its expression is no plain arithmetic ({error})") from None


def _refuse(loader: _ConfigLoader, node: yaml.Node) -> None:
    raise _UnsafeTag(node)


_ConfigLoader.add_constructor(_PYTHON_TAG + "tuple", _tuple)
_ConfigLoader.add_constructor(_PYTHON_TAG + "object/apply:eval", _arithmetic)
_ConfigLoader.add_constructor(None, _refuse)  # every other tag


class _Reader:
    """Reads a file and its bases, each once."""

    def __init__(self, allow_unsafe: bool):
        self.allow_unsafe = allow_unsafe
        self.values: dict[str, dict[str, Any]] = {}

    def read(self, path: str, readers: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the values of a file over those of its bases; ``readers`` are the files that led to it."""
        file = path if "://" in path else os.path.realpath(path)
        if file in readers:
            raise ConfigError([f"_BASE_ of {readers[-1]} leads back to itself: {' -> '.join((*readers, file))}"])
        if file not in self.values:
            own = parse_yaml(_read_text(path, readers), path, allow_unsafe=self.allow_unsafe)
            bases = own.pop(_BASE, [])
            bases = [bases] if isinstance(bases, str) else bases
            if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
                raise ConfigError([f"{path}: _BASE_ is the path of a file, or a list of paths"])
            merged: dict[str, Any] = {}
            for base in bases:
                base = os.path.expanduser(base)
                base = base if "://" in base else os.path.join(os.path.dirname(path), base)
                _merge(merged, self.read(base, (*readers, file)))
            _merge(merged, own)
            self.values[file] = merged
        return self.values[file]


def _read_text(path: str, readers: tuple[str, ...]) -> bytes:
    named = f" (_BASE_ of {readers[-1]})" if readers else ""
    if path.endswith(".py"):
        raise ConfigError([
            f"{path}{named}: this is Python, such as Detectron2's LazyConfig. train_net.py and the commands read YAML; "
            "Detectron2's tools/lazyconfig_train_net.py runs LazyConfig files"
        ])  # fmt: skip
    try:
        local = PathManager.get_local_path(path) if "://" in path else path
        require_regular_file(local)
        with open(local, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"cannot read config file {path}{named}: {error.strerror or error}"]) from None
    except Exception as error:  # of the handler of an address
        raise ConfigError([f"cannot fetch config file {path}{named}: {error}"]) from None
    if kind := identify_file(text[:64]):
        raise ConfigError([f"config file {path}{named} is {kind}"])
    if len(text) > _MAX_BYTES:
        raise ConfigError([f"{path}{named} is not a config file: it is larger than {_MAX_BYTES >> 20} MiB"])
    return text


def _merge(values: dict[str, Any], others: dict[str, Any]) -> None:
    """Merge nested dicts into nested dicts, in place."""
    for key, value in others.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = copy.deepcopy(value)  # a file, or an alias within it, may be merged in several places


def _check_size(values: dict[str, Any], source: str) -> None:
    """Refuse what aliases make endless: one of its own node, or ten of a node with ten of a node, and so on."""
    open_nodes: list[Any] = [values]
    num_values = 0
    while open_nodes:
        node = open_nodes.pop()
        items = list(node.values() if isinstance(node, dict) else node)
        num_values += len(items)
        if num_values > _MAX_VALUES:
            raise ConfigError([f"{source} is not a config file: it has more than {_MAX_VALUES} values"])
        open_nodes += [item for item in items if isinstance(item, (dict, list, tuple))]
