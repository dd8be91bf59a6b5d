"""``python -m retina_plugin COMMAND``, installed as ``retina-plugin COMMAND``."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from retina_plugin.cli import ALIASES, COMMANDS
from retina_plugin.config import add_config_arguments
from retina_plugin.config.imports import import_modules
from retina_plugin.core.errors import UserError, format_error
from retina_plugin.core.failures import explain_failures
from retina_plugin.core.terminal import printable_output

_PROG = "retina-plugin"


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run a command and return its exit status.

    Args:
        argv: the name of the command and its arguments; None for those of this process.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(_PROG, formatter_class=argparse.RawDescriptionHelpFormatter)
    summaries = {name: summary for name, (_, summary) in COMMANDS.items()}
    summaries = {"train": "Train or evaluate a detector, as train_net.py does", **summaries}
    parser.epilog = "\n".join(["commands:", *(f"  {name:12} {summary}" for name, summary in summaries.items())])
    parser.add_argument("command", choices=[*summaries, *ALIASES], metavar="COMMAND", help="see below")
    name = parser.parse_args(argv[:1]).command
    if name == "train":
        importlib.import_module("retina_plugin.engine.train_net").main(argv[1:])
        return None
    if name in ALIASES:
        print(f"warning: {name} is the old name of {ALIASES[name]}", file=sys.stderr)
        name = ALIASES[name]
    module_name, summary = COMMANDS[name]
    command = importlib.import_module(f"retina_plugin.cli.{module_name}")
    parser = argparse.ArgumentParser(f"{_PROG} {name}", description=summary)
    command.add_arguments(parser)
    add_config_arguments(parser)
    if {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])  # parse_intermixed_args hides positional arguments
    args = parser.parse_intermixed_args(argv[1:])
    with printable_output():
        try:
            import_modules(args.imports)
            with explain_failures():
                status = command.run(args)
                sys.stdout.flush()
                return status
        except (UserError, OSError, ValueError) as error:
            if not isinstance(error, BrokenPipeError):  # as in `... | head`
                print(format_error(error), file=sys.stderr)
            _drop_unwritten_output()
            return 2


def _drop_unwritten_output() -> None:
    """Keep Python from failing again at its exit, if standard output is full or closed."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
