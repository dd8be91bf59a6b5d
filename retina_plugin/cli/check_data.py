"""Arguments of ``check-data``."""

import argparse
from pathlib import Path

from retina_plugin.cli.dataset_arguments import add_dataset_arguments, split_words
from retina_plugin.data.checks import MAX_DROPPED
from retina_plugin.tools.check_data.check import check_data_set_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = (
        "Exit status 0: no errors (there may be warnings and notes); 1: errors; 2: the data set cannot be read, or the "
        "arguments are wrong. With --fix, the status is that of the data set as it is, or 1 if no copy was written."
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="[NAME] KEY VALUE", help="data set registered with Detectron2; overrides")
    add_dataset_arguments(parser, "NAME")
    add("--config-file", default="", help="of the training: its anchors, sizes and classes (default: Base-RetinaNet)")
    add("--workers", type=int, help="processes that read images, 0 for this one (default: one a CPU)")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--headers-only", action="store_true", help="read headers of images, and decode none")
    files.add_argument("--no-images", action="store_true", help="leave image files alone")
    add("--examples", type=int, default=3, metavar="N", help="places to print of each kind (default: %(default)s)")
    add("--report", type=Path, metavar="FILE", help="write every finding, to .csv or .json")
    add("--fix", type=Path, metavar="FILE", help="write a corrected copy of the COCO file")
    share = f"{MAX_DROPPED:.0%}".replace("%", "%%")
    add("--drop", action="store_true", help=f"let --fix drop more than {share} of images, annotations or categories")
    add("--overwrite", action="store_true", help="let --report and --fix replace files, never the data set's own")
    add("--opts", nargs="...", default=[], help=argparse.SUPPRESS)  # an older form of KEY VALUE


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    name, opts = split_words(args.words)
    _, status = check_data_set_of(
        name,
        json_file=args.json,
        image_root=args.images,
        config_file=args.config_file,
        opts=[*opts, *args.opts],
        imports=args.imports,
        allow_unsafe_yaml=args.allow_unsafe_yaml,
        read_images=not args.no_images,
        decode=not args.headers_only,
        workers=args.workers,
        examples=args.examples,
        report_file=args.report,
        fixed_file=args.fix,
        drop=args.drop,
        overwrite=args.overwrite,
    )
    return status
