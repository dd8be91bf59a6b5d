"""Inputs, results and drawing need neither torch nor Detectron2, which alone the torch backend imports."""

import ast
import sys

from ..test_structure import IMPORTS, TREES, imported

BACKEND = "retina_plugin.runtime.torch_backend"
# The package itself imports Detectron2: exported files will need a way around its __init__.
LIBRARIES = {"numpy", "PIL", "cv2", "matplotlib", "supervision", "sahi", "fiftyone", "retina_plugin"}


def needed_by(names):
    """Modules of the package that are imported by some of them, themselves included."""
    found, waiting = set(), [name for name in names if name != BACKEND]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += IMPORTS[name] - {BACKEND, "retina_plugin"}
    return found


def libraries_of(tree):
    names = list(imported(tree))
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


def test_the_interface_needs_no_torch():
    modules = needed_by(name for name in TREES if name.startswith("retina_plugin.runtime"))
    assert any(name.startswith("retina_plugin.core") for name in modules)
    # core/files.py imports Detectron2 for remote paths alone, in a function.
    needed = {name: libraries_of(TREES[name]) - LIBRARIES for name in modules if name != "retina_plugin.core.files"}
    assert not {name: libraries for name, libraries in needed.items() if libraries}
    top = ast.Module([node for node in TREES["retina_plugin.core.files"].body if "Import" in type(node).__name__], [])
    assert libraries_of(top) <= LIBRARIES
