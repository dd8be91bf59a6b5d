"""Reads configuration files and overrides, with errors that say what to do."""

import argparse
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, downgrade_config, upgrade_config
from detectron2.config import get_cfg as get_detectron2_cfg

from retina_plugin.config.defaults import add_retina_config
from retina_plugin.config.imports import add_imports, add_project, follow_imports
from retina_plugin.config.yaml_file import UNSAFE_FLAG, read_yaml
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import did_you_mean

RENAMED_KEYS = {"SOLVER.AUTO_SCALE": "SOLVER.REFERENCE_BATCH_SIZE", "TEST.LOSS_PERIOD": "TEST.VAL_LOSS_PERIOD"}


def get_cfg(*add_config: Callable[[CfgNode], object]) -> CfgNode:
    """Return Detectron2's default configuration with the plugin's keys and those of projects.

    Args:
        add_config: functions of modules that add keys to a ``CfgNode`` in place. ``cfg.IMPORTS`` records the modules,
            so that whoever reads the configuration later finds the keys and all that the modules register.
    """
    cfg = get_detectron2_cfg()
    add_retina_config(cfg)
    for function in add_config:
        add_project(cfg, function)
    return cfg


def read_config(
    config_file: str = "",
    opts: Sequence[Any] = (),
    imports: Iterable[str] = (),
    cfg: CfgNode | None = None,
    *,
    allow_unsafe: bool = False,
) -> CfgNode:
    """Read a configuration: import modules of projects, then merge a file, then overrides.

    Args:
        imports: modules as of ``--import``, see :mod:`retina_plugin.config.imports`.
        cfg: holds every known key and stays as it is; None for :func:`get_cfg`.
        config_file, opts, allow_unsafe: see :func:`merge_config`.

    Raises:
        ConfigError: see :func:`merge_config`.
    """
    cfg = get_cfg() if cfg is None else cfg.clone()
    add_imports(cfg, imports)
    merge_config(cfg, config_file, opts, allow_unsafe=allow_unsafe)
    return cfg


def merge_config(cfg: CfgNode, config_file: str = "", opts: Sequence[Any] = (), *, allow_unsafe: bool = False) -> None:
    """Merge a YAML file and command-line overrides into a ``CfgNode`` (in place).

    The modules in the file's ``IMPORTS`` are imported first and add their keys. Old names of keys are accepted.

    Args:
        cfg: holds every known key, as from :func:`get_cfg`.
        config_file: path of a YAML file, which may have a ``_BASE_``; empty for none.
        opts: ``["KEY", "VALUE", ...]``, as Detectron2's argument parser returns them.
        allow_unsafe: run the code that tags in the file name; see :func:`~retina_plugin.config.yaml_file.read_yaml`.

    Raises:
        ConfigError: the file is missing, not YAML or names code; unknown keys (all of them, each with the key that may
            have been meant); a value of another type than the key's default; overrides that are not pairs; a module
            that cannot be imported.
    """
    opts = list(opts)
    if len(opts) % 2:
        words = " ".join(map(str, opts))
        raise ConfigError([f"overrides come in pairs, KEY VALUE, but there are {len(opts)} words: {words}"])
    if config_file:
        values = read_yaml(config_file, allow_unsafe=allow_unsafe)
        version = _version_of(values, config_file, cfg.VERSION)
        if version == cfg.VERSION:
            merge_values(cfg, values, config_file, Path(config_file).resolve().parent)
        else:
            _merge_older(cfg, values, version, config_file)
    if "IMPORTS" in opts[::2]:
        raise ConfigError(["IMPORTS on the command line: give --import MODULE"])
    overrides = _rename(list(zip(opts[::2], opts[1::2])), "command line")
    _check_keys(overrides, dict(flatten(cfg)), "command line")
    _merge(lambda: cfg.merge_from_list([word for pair in overrides for word in pair]), "command line")


def merge_values(cfg: CfgNode, values: Mapping[str, Any], source: str, folder: Path) -> None:
    """Merge the nested values of a file, with ``source`` as its name in messages; see :func:`merge_config`.

    Modules of ``IMPORTS`` inside ``folder`` are refused.
    """
    items = _rename(list(flatten(values)), source)
    imports = dict(items).get("IMPORTS") or []
    if not isinstance(imports, (list, tuple)) or not all(isinstance(name, str) for name in imports):
        raise ConfigError([f"{source}: IMPORTS is a list of modules, got {imports}"])
    if "IMPORTS" in cfg:
        follow_imports(cfg, imports, source, folder)
        items = [(key, value) for key, value in items if key != "IMPORTS"]
    _check_keys(items, dict(flatten(cfg)), source)
    nested: dict[str, Any] = {}
    for key, value in items:
        *sections, name = key.split(".")
        functools.reduce(lambda node, section: node.setdefault(section, {}), sections, nested)[name] = value
    _merge(lambda: cfg.merge_from_other_cfg(CfgNode(nested)), source)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of everything that reads a configuration: ``--import MODULE``, ``--allow-unsafe-yaml``."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="import a module (name or .py path) that registers parts or data sets, or adds keys by add_config(cfg)",
    )
    parser.add_argument(
        UNSAFE_FLAG, action="store_true", help="run the code that a configuration file names; for files that you trust"
    )


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("A.B.C", value) for every leaf of nested dicts."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _version_of(values: Mapping[str, Any], source: str, latest: int) -> int:
    """Return the version of Detectron2's keys that a file has; without ``VERSION``, by the keys that were renamed."""
    older = {"MODEL.WEIGHT", "TEST.AUG_ON"} & dict(flatten(values)).keys()
    version = values.get("VERSION", 1 if older else latest)
    if version not in range(1, latest + 1):
        raise ConfigError([f"{source}: VERSION is {version}, and this Detectron2 reads 1 to {latest}"])
    return version


def _merge_older(cfg: CfgNode, values: Mapping[str, Any], version: int, source: str) -> None:
    """Merge the values of a file with the keys of an older Detectron2, which converts them."""
    if "IMPORTS" in values:
        raise ConfigError([f"{source}: IMPORTS in a file of VERSION {version}; give --import MODULE"])
    older = downgrade_config(cfg, version)
    _check_keys(flatten(values), dict(flatten(older)), source)
    _merge(lambda: older.merge_from_other_cfg(CfgNode(values)), source)
    cfg.clear()
    cfg.update(upgrade_config(older))


def _rename(items: list[tuple[str, Any]], where: str) -> list[tuple[str, Any]]:
    """Replace old names of keys."""
    values, problems = dict(items), []
    for old in RENAMED_KEYS.keys() & values.keys():
        new = RENAMED_KEYS[old]
        _warn_of_old_name(old, new)
        if str(values.get(new, values[old])) != str(values[old]):
            problems.append(f"{where}: {old} is {values[old]}, but {new}, its new name, {values[new]}. Remove {old}")
    if problems:
        raise ConfigError(problems)
    return [(RENAMED_KEYS.get(key, key), value) for key, value in items]


@functools.cache  # one warning a process
def _warn_of_old_name(old: str, new: str) -> None:
    logging.getLogger(__name__).warning("%s is the old name of %s: use the new one.", old, new)


def _check_keys(items: Iterable[tuple[str, Any]], known: dict[str, Any], where: str) -> None:
    problems = []
    for key, value in items:
        if any(k.startswith(f"{key}.") for k in known):
            if value != {}:
                problems.append(f"{where}: {key} is a section with keys of its own, got {value}")
        elif key not in known:
            problems.append(_unknown_key(key, known, where))
    if problems:
        raise ConfigError(problems)


def _unknown_key(key: str, known: dict[str, Any], where: str) -> str:
    # The most frequent slips are the right name under the wrong node, and the beginning of a name.
    name = key.rpartition(".")[2]
    likely = [k for k in known if k.rpartition(".")[2] == name] or [k for k in known if k.startswith(key)]
    likely.sort(key=lambda k: not k.startswith("MODEL.RETINANET."))
    hint = f" Did you mean {likely[0]}?" if likely else did_you_mean(key, known)
    return f"unknown key {key} ({where}).{hint}"


def _merge(merge: Callable[[], object], where: str) -> None:
    try:
        merge()
    except (AssertionError, KeyError, ValueError, MemoryError, RecursionError) as error:  # the last of nested text
        raise ConfigError([f"{where}: {' '.join(map(str, error.args))}"]) from None
