"""Imports the modules of projects, which register parts and data sets and add configuration keys.

A module is given by its name, or by the path of its ``.py`` file or package. ``MODULE:FUNCTION`` names the function
that adds keys if it is not called ``add_config``.
"""

import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from detectron2.config import CfgNode

from retina_plugin.core.errors import ConfigError

_ADD_CONFIG = "add_config"


def import_modules(names: Iterable[str]) -> list[ModuleType]:
    """Import modules by name or path, no file twice. The folder of a path is in ``sys.path`` during the import.

    Raises:
        ConfigError: there is no such module, or another one has its name.
    """
    return [_import(_split(name)[0]) for name in names]


def add_imports(cfg: CfgNode, names: Iterable[str]) -> None:
    """Import modules, let each add its keys to a configuration, and record the modules in ``cfg.IMPORTS``.

    Raises:
        ConfigError: see :func:`import_modules`; or a module lacks the function that was named.
    """
    for name in names:
        module_name, function = _split(name)
        module = _import(module_name)
        add_config = getattr(module, function, None)
        if add_config is None and function != _ADD_CONFIG:
            raise ConfigError([f"{name}: the module {module.__name__} has no function {function}"])
        _record(cfg, _reference(module, function), add_config)


def add_project(cfg: CfgNode, add_config: Callable[[CfgNode], object]) -> None:
    """Call a project's function that adds keys, and record its module in ``cfg.IMPORTS``.

    Raises:
        ConfigError: the function is not one of a module, so that no other process would find it.
    """
    module, name = sys.modules.get(add_config.__module__), getattr(add_config, "__name__", "")
    if module is None or getattr(module, name, None) is not add_config:
        raise ConfigError([f"add_config={add_config} is not a function of a module, and later commands cannot find it"])
    _record(cfg, _reference(module, name), add_config)


def follow_imports(cfg: CfgNode, names: Iterable[str], source: str, folder: Path) -> None:
    """Import the modules that a file names in ``IMPORTS``, except those that ``cfg.IMPORTS`` has already.

    Args:
        source: the file, for messages.
        folder: of the file. Modules inside are refused: whoever made the file may have put them there.

    Raises:
        ConfigError: a module cannot be found or is refused.
    """
    given = {_last_part(_split(name)[0]) for name in cfg.IMPORTS}
    for name in names:
        module_name = _split(name)[0]
        if name in cfg.IMPORTS or _last_part(module_name) in given:
            continue
        if _is_path(module_name) and not os.path.isabs(module_name):
            raise ConfigError([f"IMPORTS of {source} has '{name}', a relative path: write an absolute one"])
        if any(location.is_relative_to(folder.resolve()) for location in _locations(module_name)):
            raise ConfigError([
                f"IMPORTS of {source} has '{name}', which lies in the folder of that file: whoever made the file may "
                f"have put it there, and importing it runs it. If you trust it, add --import {name}"
            ])  # fmt: skip
        logging.getLogger(__name__).warning("Importing %s, because IMPORTS of %s names it.", name, source)
        try:
            add_imports(cfg, [name])
        except ConfigError as error:
            problems = (f"IMPORTS of {source}: {problem}. Give --import MODULE" for problem in error.problems)
            raise ConfigError(problems) from error


def _record(cfg: CfgNode, reference: str, add_config: Callable[[CfgNode], object] | None) -> None:
    if reference in cfg.IMPORTS:
        return
    if add_config is not None:
        add_config(cfg)
    cfg.IMPORTS = [*cfg.IMPORTS, reference]


def _split(name: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+):([A-Za-z_]\w*)", name)
    return (match[1], match[2]) if match else (name, _ADD_CONFIG)


def _is_path(name: str) -> bool:
    return name.endswith(".py") or "/" in name or os.sep in name


def _last_part(module_name: str) -> str:
    return Path(module_name).stem if _is_path(module_name) else module_name.rpartition(".")[2]


def _locations(module_name: str) -> list[Path]:
    """Where a module, or the package that it is in, would be imported from."""
    if _is_path(module_name):
        return [Path(module_name).resolve()]
    try:
        spec = importlib.util.find_spec(module_name.partition(".")[0])
    except ValueError:  # of __main__
        return []
    found = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    return [Path(location).resolve() for location in found if location]


def _import(name: str) -> ModuleType:
    if _is_path(name):
        return _import_path(Path(name).resolve())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks another one
        raise ConfigError([f"there is no module '{name}' here: give the path of its .py file, or install it"]) from None


def _import_path(path: Path) -> ModuleType:
    file = path / "__init__.py" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError([f"there is no module {path}"])
    names, folder = ([] if file.name == "__init__.py" else [file.stem]), file.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    for module in list(sys.modules.values()):  # such as __main__
        known = getattr(module, "__file__", None)
        if known and os.path.basename(known) == file.name and Path(known).resolve() == file:
            return module
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(".".join(names))
    finally:
        sys.path.remove(str(folder))
    if Path(module.__file__ or "").resolve() != file:
        raise ConfigError([f"{path} cannot be imported: {module.__file__} has the name {module.__name__}. Rename it"])
    return module


def _reference(module: ModuleType, function: str) -> str:
    """What imports a module in another process: its name if that does not depend on the folder of the script."""
    reference = module.__name__
    if module.__name__ in ("__main__", "__mp_main__") or not _is_found_by_name(module):
        path = Path(module.__file__ or "").resolve()
        reference = str(path.parent if path.name == "__init__.py" else path)
    return reference if function == _ADD_CONFIG else f"{reference}:{function}"


def _is_found_by_name(module: ModuleType) -> bool:
    top = module.__name__.partition(".")[0]
    origin = getattr(sys.modules[top], "__file__", None)
    for finder in sys.meta_path:
        # sys.path[0] is the folder of the script or the current one.
        spec = finder.find_spec(top, sys.path[1:] if finder is PathFinder else None)
        if spec is not None:
            return spec.origin == origin
    return False
