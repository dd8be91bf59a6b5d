"""The structure of the package, read from its source: imports go down the layers, without circles, and all is typed."""

import ast
from pathlib import Path

import pytest

import retina_plugin

ROOT = Path(retina_plugin.__file__).parent
LAYERS = (
    *("__main__", "cli", "tools", "engine", "diagnostics", "runtime", "model_zoo", "evaluation", "checkpoint", "data"),
    *("modeling", "losses", "config", "core", "detectron2_compat"),
)


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in ROOT.rglob("*.py") if "configs" not in path.relative_to(ROOT).parts}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imported(tree):
    """Names of the package's own modules that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports have absolute names"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


IMPORTS = {name: {i for i in imported(tree) if i in FILES and i != name} for name, tree in TREES.items()}


def room(name):
    return name.split(".")[1] if "." in name else None


def test_every_room_has_a_layer():
    assert {room(name) for name in FILES} - {None} <= set(LAYERS)


def test_imports_go_down_the_layers():
    up = [
        f"{name} -> {other}"
        for name, others in IMPORTS.items()
        for other in others
        if room(name) and room(other) and room(name) != room(other)
        if LAYERS.index(room(other)) <= LAYERS.index(room(name))
    ]
    assert not up


def test_no_modules_import_each_other():
    done = set()

    def visit(name, above):
        assert name not in above, f"a circle: {' -> '.join([*above[above.index(name) :], name])}"
        if name in done:
            return
        for other in sorted(IMPORTS[name] - {"retina_plugin"}):
            visit(other, [*above, name])
        done.add(name)

    for name in sorted(FILES):
        if name != "retina_plugin":
            visit(name, [])


def public_functions(body, owner=""):
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                yield f"{owner}{node.name}", node, bool(owner)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{owner}{node.name}.")


@pytest.mark.parametrize("name", sorted(FILES))
def test_public_functions_are_typed(name):
    untyped = []
    for function, node, is_method in public_functions(TREES[name].body):
        arguments = [*node.args.posonlyargs, *node.args.args]
        is_static = any(getattr(d, "id", None) == "staticmethod" for d in node.decorator_list)
        arguments = arguments[1:] if is_method and not is_static else arguments
        typed = all(argument.annotation for argument in [*arguments, *node.args.kwonlyargs])
        if not typed or (node.returns is None and node.name != "__init__"):
            untyped.append(f"{function}, line {node.lineno}")
    assert not untyped
