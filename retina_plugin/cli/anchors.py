"""Arguments of ``anchors``."""

import argparse
from pathlib import Path

from retina_plugin.cli.dataset_arguments import add_dataset_arguments, split_words
from retina_plugin.core.errors import ConfigError
from retina_plugin.modeling.anchor_coverage import MAX_MISSED
from retina_plugin.tools.anchors import coverage, fit, show
from retina_plugin.tools.anchors.check import check_anchors
from retina_plugin.tools.anchors.training_set import read_training_config

# Destination -> the option, and the actions that take it.
_OPTIONS = {
    "max_missed": ("--max-missed", ("check",)),
    "max_images": ("--max-images", ("check", "fit")),
    "num_scales": ("--scales", ("fit",)),
    "num_ratios": ("--ratios", ("fit",)),
    "num_images": ("--num-images", ("show",)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "check: which boxes no anchor covers, by size, level, ratio and class, after the resizing of the training\n"
        "fit:   sizes and ratios that cover the boxes better, and the gain on images that were held out\n"
        "show:  training images as the model sees them, with boxes and assigned anchors\n\n"
        "Exit status 0: done; 1: check found too many boxes without an anchor; 2: error."
    )
    add = parser.add_argument
    add("action", choices=["check", "fit", "show"], help="see below")
    add("words", nargs="*", metavar="[NAME] KEY VALUE", help="data set registered with Detectron2; overrides")
    add_dataset_arguments(parser, "NAME (without either: DATASETS.TRAIN of --config-file)")
    add("--config-file", default="", help="of the training (default: retinanet_R50)")
    add("--output", type=Path, metavar="DIR", help="folder for the files: JSON and PNG of check, YAML and JSON of fit")
    add("--overwrite", action="store_true", help="replace files in it")
    add("--seed", type=int, default=0, help="of augmentations and held-out images (default: %(default)s)")
    limit = f"{MAX_MISSED:g}"
    add("--max-missed", type=float, metavar="SHARE", help=f"check: boxes that may lack an anchor (default: {limit})")
    images = f"check, fit: images to look at, 0 for all (default: {coverage.MAX_IMAGES}, {fit.MAX_IMAGES})"
    add("--max-images", type=int, metavar="N", help=images)
    add("--scales", dest="num_scales", type=int, metavar="N", help="fit: sizes of each level (default: as configured)")
    add("--ratios", dest="num_ratios", type=int, metavar="N", help="fit: ratios (default: as configured)")
    add("--num-images", type=int, metavar="N", help=f"show: images to draw (default: {show.NUM_IMAGES})")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    given = {name: value for name in _OPTIONS if (value := getattr(args, name)) is not None}
    wrong = [_OPTIONS[name][0] for name in given if args.action not in _OPTIONS[name][1]]
    if wrong:
        raise ConfigError([f"anchors {args.action} takes no {', '.join(wrong)}"])
    if min(given.get("num_scales", 1), given.get("num_ratios", 1)) < 1:
        raise ConfigError(["--scales and --ratios are numbers of anchors, from 1 on"])
    if args.action == "show" and args.output is None:
        raise ConfigError(["anchors show writes images: give a folder, --output DIR"])
    if args.overwrite and args.output is None:
        raise ConfigError(["--overwrite is for the files in --output DIR"])
    if args.seed < 0 or given.get("max_images", 0) < 0:
        raise ConfigError(["--seed and --max-images are 0 or more"])
    name, opts = split_words(args.words)
    cfg = read_training_config(
        name,
        json_file=args.json,
        image_root=args.images,
        config_file=args.config_file,
        opts=opts,
        imports=args.imports,
        allow_unsafe_yaml=args.allow_unsafe_yaml,
    )
    common = {"output_dir": args.output, "overwrite": args.overwrite, "seed": args.seed}
    if args.action == "check":
        return check_anchors(cfg, **common, **given)[1]
    if args.action == "fit":
        fit.print_fitted_anchors(cfg, **common, **given)
        return 0
    for path in show.show_anchors(cfg, **common, **given):
        print(path.resolve())
    return 0
