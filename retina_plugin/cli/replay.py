"""Arguments of ``replay``."""

import argparse
from pathlib import Path

from retina_plugin.modeling.precision import PRECISIONS
from retina_plugin.tools.replay.run import replay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit status 0: losses, gradients or buffers are not finite this time, either; 1: all are finite; 2: the file "
        "cannot be run (error: ...)."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="OUTPUT_DIR/divergence/iteration_N_rank_R.pth")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is a GPU)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the forward pass (default: that of the training)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings to try, as for train_net.py")


def run(args: argparse.Namespace) -> int:
    is_finite = replay(args.file, device=args.device, precision=args.precision, imports=args.imports, opts=args.opts)
    return 1 if is_finite else 0
