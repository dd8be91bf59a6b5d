"""The commands together: help, names, what is imported, exit status."""

import pytest

from retina_plugin.__main__ import main
from retina_plugin.cli import ALIASES, COMMANDS


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and all(f"\n  {name} " in out for name in ["train", *COMMANDS])


@pytest.mark.parametrize("name", [*COMMANDS, *ALIASES, "train"])
def test_every_command_takes_modules(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0 and "--import MODULE" in capsys.readouterr().out


def test_a_command_that_does_not_exist(capsys):
    with pytest.raises(SystemExit) as end:
        main(["visualise"])
    assert end.value.code == 2 and "visualize" in capsys.readouterr().err


def test_a_module_that_cannot_be_imported_is_an_error_in_a_line(capsys):
    assert main(["plot-losses", "--import", "no_such_module"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no module 'no_such_module' here")


def test_nothing_is_imported_before_it_is_called(python):
    code = "import sys, retina_plugin, retina_plugin.__main__;"
    code += "print(sorted({m.split('.')[1] for m in sys.modules if m.startswith('retina_plugin.')}))"
    out = python.run("-c", code).stdout
    assert not {"engine", "evaluation", "checkpoint", "tools", "diagnostics", "model_zoo"} & set(eval(out))
    assert {"modeling", "losses", "data"} <= set(eval(out))
