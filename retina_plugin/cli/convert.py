"""Arguments of ``convert``."""

import argparse
from pathlib import Path

from retina_plugin.checkpoint.converters import SOURCES, TARGETS
from retina_plugin.tools.convert.run import convert_file, export_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", type=Path, metavar="SRC", help="file of weights")
    parser.add_argument("dst", type=Path, metavar="DST", help="writes DST.pth, and DST.yaml for train_net.py")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--from", dest="source", choices=SOURCES, help="framework of SRC (default: by its names)")
    direction.add_argument("--to", dest="target", choices=TARGETS, help="SRC is this plugin's: convert it for another")
    parser.add_argument(
        "--config-file",
        type=Path,
        help="with --to: the configuration of SRC (default: SRC's name with .yaml, or config.yaml beside it)",
    )
    parser.add_argument(
        "--norm-eps",
        type=float,
        metavar="EPS",
        help="what the backbone's norms add to the variance in the source (default: what is usual there)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DST.pth and DST.yaml, never SRC")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read a file that may run code; for files that you trust"
    )


def run(args: argparse.Namespace) -> None:
    options = {"allow_pickle": args.allow_pickle, "overwrite": args.overwrite}
    if args.target:
        trust = {"allow_unsafe_yaml": args.allow_unsafe_yaml, **options}
        print(export_file(args.src, args.dst, args.target, config_file=args.config_file, imports=args.imports, **trust))
    else:
        print(convert_file(args.src, args.dst, args.source, norm_eps=args.norm_eps, **options))
