"""Arguments of ``visualize``."""

import argparse
from pathlib import Path

from retina_plugin.tools.visualize.run import visualize_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of a training or evaluation")
    parser.add_argument("--num-images", type=int, default=12, help="images to show (default: %(default)s)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="lowest score of a detection to show (default: %(default)s)"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of OUTPUT_DIR/config.yaml")


def run(args: argparse.Namespace) -> None:
    for path in visualize_run(
        args.output_dir,
        num_images=args.num_images,
        score_threshold=args.score_threshold,
        imports=args.imports,
        allow_unsafe_yaml=args.allow_unsafe_yaml,
        opts=args.opts,
    ):
        print(f"Test images with ground truth and detections: {path.resolve()}")
