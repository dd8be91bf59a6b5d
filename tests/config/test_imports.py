"""Modules of projects: given by name or path, recorded in ``IMPORTS``, and found again."""

import sys

import pytest

from retina_plugin import ConfigError, get_cfg
from retina_plugin.config import merge_config, read_config
from retina_plugin.config.imports import import_modules

KEY = "def add_config(cfg):\n    cfg.{} = 3\n"


@pytest.fixture(autouse=True)
def forget_modules():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("mine_"):
            del sys.modules[name]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problem(function, *arguments, **options):
    with pytest.raises(ConfigError) as error:
        function(*arguments, **options)
    (line,) = error.value.problems
    return line


def test_a_file_is_imported_once_with_its_neighbors_and_adds_its_keys(tmp_path):
    write(tmp_path / "mine_neighbor.py", "VALUE = 7\n")
    file = write(tmp_path / "mine_a.py", "from mine_neighbor import VALUE\n" + KEY.format("MINE_A"))
    paths = list(sys.path)
    cfg = read_config(imports=[str(file), str(file)])
    assert cfg.MINE_A == 3 and cfg.IMPORTS == [str(file)] and sys.modules["mine_a"].VALUE == 7
    assert import_modules([str(file)]) == [sys.modules["mine_a"]] and sys.path == paths
    with pytest.raises(AttributeError):
        _ = get_cfg().MINE_A


def test_a_file_of_a_package_is_imported_as_its_module(tmp_path):
    write(tmp_path / "mine_b" / "__init__.py", "LOADED = True\n")
    file = write(tmp_path / "mine_b" / "keys.py", "import mine_b\n" + KEY.format("MINE_B"))
    module, package = import_modules([str(file), str(tmp_path / "mine_b")])
    assert module.__name__ == "mine_b.keys" and package.LOADED and package is module.mine_b
    assert read_config(imports=[str(file)]).IMPORTS == [str(file)]


def test_a_function_of_another_name(tmp_path):
    file = write(tmp_path / "mine_c.py", KEY.format("MINE_C").replace("add_config", "add_mine"))
    cfg = read_config(imports=[f"{file}:add_mine"])
    assert cfg.MINE_C == 3 and cfg.IMPORTS == [f"{file}:add_mine"]
    assert get_cfg(sys.modules["mine_c"].add_mine).IMPORTS == [f"{file}:add_mine"]
    assert problem(read_config, imports=[f"{file}:other"]).endswith("the module mine_c has no function other")


def test_the_file_of_a_run_is_read_again_with_its_overrides(tmp_path, caplog):
    file = write(tmp_path / "project" / "mine_d.py", KEY.format("MINE_D"))
    cfg = read_config(imports=[str(file)], opts=["MINE_D", "5"])
    config = write(tmp_path / "run" / "config.yaml", cfg.dump())
    assert (read_config(str(config)).MINE_D, read_config(str(config), ["MINE_D", "6"]).MINE_D) == (5, 6)
    assert f"Importing {file}, because IMPORTS of {config} names it" in caplog.text
    caplog.clear()
    assert read_config(str(config), imports=[str(file)]).IMPORTS == [str(file)] and not caplog.text


def test_a_project_that_has_moved_is_given_anew(tmp_path):
    config = write(tmp_path / "run" / "config.yaml", "MINE_E: 4\nIMPORTS: [/nowhere/mine_e.py]\n")
    line = problem(read_config, str(config))
    assert line == f"IMPORTS of {config}: there is no module /nowhere/mine_e.py. Give --import MODULE"
    file = write(tmp_path / "mine_e.py", KEY.format("MINE_E"))
    cfg = read_config(str(config), imports=[str(file)])
    assert cfg.MINE_E == 4 and cfg.IMPORTS == [str(file)]


@pytest.mark.parametrize("by_name", [False, True])
def test_a_module_in_the_folder_of_the_file_is_imported_only_if_the_user_says_so(tmp_path, monkeypatch, by_name):
    monkeypatch.syspath_prepend(tmp_path / "run")  # as with python -m in that folder
    file = write(tmp_path / "run" / "sub" / "mine_f.py", KEY.format("MINE_F"))
    write(tmp_path / "run" / "mine_f2.py", KEY.format("MINE_F"))
    name = "mine_f2" if by_name else str(file)
    config = write(tmp_path / "run" / "config.yaml", f"MINE_F: 4\nIMPORTS: ['{name}']\n")
    line = problem(merge_config, get_cfg(), str(config))
    assert line.endswith(f"If you trust it, add --import {name}") and not {"mine_f", "mine_f2"} & set(sys.modules)
    assert read_config(str(config), imports=[name]).MINE_F == 4


@pytest.mark.parametrize(
    "imports, message",
    [
        ("[mine_relative.py]", "has 'mine_relative.py', a relative path: write an absolute one"),
        ("[no_such_module]", "there is no module 'no_such_module' here"),
        ("mine", "IMPORTS is a list of modules, got mine"),
    ],
)
def test_imports_that_cannot_be_followed(tmp_path, imports, message):
    config = write(tmp_path / "config.yaml", f"IMPORTS: {imports}\n")
    assert message in problem(merge_config, get_cfg(), str(config))


def test_imports_are_no_override_and_functions_must_be_found_again(tmp_path):
    assert "--import MODULE" in problem(merge_config, get_cfg(), opts=["IMPORTS", "['mine']"])
    assert "is not a function of a module" in problem(get_cfg, lambda cfg: None)
    other = write(tmp_path / "json.py", "")
    assert "json has the name json. Rename it" in problem(import_modules, [str(other)]).replace("/__init__.py", "")


def test_the_function_of_a_script_is_recorded_by_its_path(tmp_path, python):
    script = write(tmp_path / "mine_script.py", KEY.format("MINE_G") + "if __name__ == '__main__':\n    import run\n")
    write(
        tmp_path / "run.py", "import __main__, retina_plugin\nprint(retina_plugin.get_cfg(__main__.add_config).IMPORTS)"
    )
    result = python.run(script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str([str(script)])
