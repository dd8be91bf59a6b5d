"""Reads configuration files and overrides, with errors that say what to do."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from retina_plugin.config.defaults import add_retina_config
from retina_plugin.config.imports import add_imports, add_project, follow_imports
from retina_plugin.core.errors import ConfigError, FileError
from retina_plugin.core.files import refuse_special_file
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
    config_file: str = "", opts: Sequence[Any] = (), imports: Iterable[str] = (), cfg: CfgNode | None = None
) -> CfgNode:
    """Read a configuration: import modules of projects, then merge a file, then overrides.

    Args:
        imports: modules as of ``--import``, see :mod:`retina_plugin.config.imports`.
        cfg: holds every known key and stays as it is; None for :func:`get_cfg`.

    Raises:
        ConfigError: see :func:`merge_config`.
    """
    cfg = get_cfg() if cfg is None else cfg.clone()
    add_imports(cfg, imports)
    merge_config(cfg, config_file, opts)
    return cfg


def merge_config(cfg: CfgNode, config_file: str = "", opts: Sequence[Any] = ()) -> None:
    """Merge a YAML file and command-line overrides into a ``CfgNode`` (in place).

    The modules in the file's ``IMPORTS`` are imported first and add their keys. Old names of keys are accepted.

    Args:
        cfg: holds every known key, as from :func:`get_cfg`.
        config_file: path of a YAML file, which may have a ``_BASE_``; empty for none.
        opts: ``["KEY", "VALUE", ...]``, as Detectron2's argument parser returns them.

    Raises:
        ConfigError: the file is missing or not YAML; unknown keys (all of them, each with the key that may have been
            meant); a value of another type than the key's default; overrides that are not pairs; a module that cannot
            be imported.
    """
    opts = list(opts)
    if len(opts) % 2:
        words = " ".join(map(str, opts))
        raise ConfigError([f"overrides come in pairs, KEY VALUE, but there are {len(opts)} words: {words}"])
    if config_file:
        values = _load(config_file)
        if values.get("VERSION", cfg.VERSION) == cfg.VERSION:
            merge_values(cfg, values, config_file, Path(config_file).resolve().parent)
        else:  # an older format with other keys, which Detectron2 converts
            _merge(lambda: cfg.merge_from_file(config_file), config_file)
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


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("A.B.C", value) for every leaf of nested dicts."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


class _RegularFiles(CfgNode):
    """Opens files and their ``_BASE_``, but neither pipes nor devices, which may never end."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        refuse_special_file(filename)
        return super()._open_cfg(filename)


def _load(config_file: str) -> CfgNode:
    try:
        return CfgNode(_RegularFiles.load_yaml_with_base(config_file, allow_unsafe=True))
    except FileError as error:
        raise ConfigError([f"cannot read config file {config_file}: {error}"]) from None
    except OSError as error:
        name = error.filename or config_file
        raise ConfigError([f"cannot read config file {name}: {error.strerror}"]) from None
    except Exception as error:  # YAML and fvcore raise many kinds
        reason = " ".join(str(error).split())
        raise ConfigError([f"{config_file} is not a YAML mapping of keys to values: {reason}"]) from None


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
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError([f"{where}: {' '.join(map(str, error.args))}"]) from None
