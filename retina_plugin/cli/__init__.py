"""The commands of ``python -m retina_plugin``.

A command is a module: its docstring's first line is the help, ``add_arguments(parser)`` declares its arguments,
``run(args)`` does the work and may return an exit status. What a user got wrong is raised as ``OSError`` or
``ValueError``.
"""

from retina_plugin.cli import check_data, convert, plot_losses, replay, visualize

COMMANDS = {
    "check-data": check_data,
    "contact-sheet": visualize,
    "convert": convert,
    "plot-losses": plot_losses,
    "replay": replay,
}
