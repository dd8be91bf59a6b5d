"""Arguments of ``plot-losses``."""

import argparse
from pathlib import Path

from retina_plugin.tools.plot_losses.ablation import read_ablation
from retina_plugin.tools.plot_losses.figures import draw_loss_curves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "output_dir", type=Path, nargs="?", default="output/figures", help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--ablation",
        type=Path,
        metavar="RESULTS_JSON",
        help="results of projects/LossAblation: adds figure 7, FL* colored by AP",
    )


def run(args: argparse.Namespace) -> None:
    ablation = None if args.ablation is None else read_ablation(args.ablation)
    for path in draw_loss_curves(args.output_dir, ablation):
        print(path.resolve())
