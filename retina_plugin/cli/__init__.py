"""The commands of ``python -m retina_plugin``, installed as ``retina-plugin``: everything that is not training.

A command is a module, imported when it is called: ``add_arguments(parser)`` declares its arguments, ``run(args)``
returns its exit status: 0 or None for done, 1 for findings. ``args.imports`` has the modules of ``--import``. What the
user got wrong is raised as ``UserError``, ``OSError`` or ``ValueError``: exit status 2.
"""

# Name -> module, first line of the help.
COMMANDS = {
    "anchors": ("anchors", "Check, fit or show the anchors of a training: which boxes of the data have positive ones"),
    "check-data": ("check_data", "Find what in a data set stops training or is learned wrongly, and correct it"),
    "convert": ("convert", "Convert weights of other frameworks for this plugin, or this plugin's for another one"),
    "predict": ("predict", "Find objects in images, folders and videos; write results and annotated copies"),
    "plot-losses": ("plot_losses", "Draw the paper's figures of the losses, as PNG and SVG"),
    "replay": ("replay", "Run a training step again whose losses, gradients or buffers were not finite, from its file"),
    "suggest": ("suggest", "Write a starting configuration for a data set, each value with its reason"),
    "visualize": ("visualize", "Draw test images with ground truth and what a trained model found"),
}
ALIASES = {"contact-sheet": "visualize"}
