"""Arguments of ``suggest``."""

import argparse
from pathlib import Path

from retina_plugin.cli.dataset_arguments import add_dataset_arguments, split_words
from retina_plugin.core.errors import ConfigError
from retina_plugin.tools.anchors.training_set import read_training_config
from retina_plugin.tools.suggest.suggest import suggest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = (
        "Suggests image or tile size, anchors, classes, batch, learning rate and length from the data, each with its "
        "reason. KEY VALUE are kept, and the others follow from them. Exit status 0: done; 2: error."
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="[NAME] KEY VALUE", help="data set registered with Detectron2; overrides")
    add_dataset_arguments(parser, "NAME")
    add("--config-file", default="", help="that the suggestion builds on (default: retinanet_R50)")
    add("--output", type=Path, metavar="FILE", help="write the YAML there, in place of the terminal")
    add("--overwrite", action="store_true", help="replace FILE")
    add("--seed", type=int, default=0, help="of the images that anchors are judged on (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    name, opts = split_words(args.words)
    if not (name or args.json):
        raise ConfigError(["name a registered data set, or a COCO file with --json FILE --images DIR"])
    if args.overwrite and args.output is None:
        raise ConfigError(["--overwrite is for --output FILE"])
    if args.seed < 0:
        raise ConfigError(["--seed is 0 or more"])
    cfg = read_training_config(
        name,
        json_file=args.json,
        image_root=args.images,
        config_file=args.config_file,
        imports=args.imports,
        allow_unsafe_yaml=args.allow_unsafe_yaml,
    )
    options = {"output_file": args.output, "overwrite": args.overwrite, "seed": args.seed}
    suggest(cfg, args.config_file, opts=opts, **options)
    if args.output is not None:
        print(args.output.resolve())
