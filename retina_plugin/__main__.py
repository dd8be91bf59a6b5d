"""``python -m retina_plugin COMMAND``: everything that is not training."""

import argparse
import sys

from retina_plugin.cli import COMMANDS


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m retina_plugin", description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (OSError, ValueError) as error:
        sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))


if __name__ == "__main__":
    sys.exit(main())
