"""What all benchmarks are told on the command line."""

import argparse
import sys

import torch


def parse(module, argv=None):
    """Read the arguments of a benchmark.

    Args:
        module: the benchmark's module; ``add_options(parser, quick)`` adds its own.
        argv: words of the command line, by default the process's.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog=f"python -m {module.__name__}",
        description=module.__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--device", type=_device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=_positive, default=2, help="threads on the CPU, by default 2")
    parser.add_argument(
        "--rounds", type=_positive, default=5, help="rounds in which each implementation runs once, by default 5"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="a case begins no round after its third when it took this long, by default 60",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the ratios as bars")
    parser.add_argument("--json", metavar="FILE", help="write the raw figures: seconds of each round, bytes")
    parser.add_argument("--quick", action="store_true", help="inputs so small that the figures mean nothing")
    module.add_options(parser, quick="--quick" in argv)
    return parser.parse_args(argv)


def integers(parser, name, default, what):
    """Add an option that takes any number of positive integers, none included."""
    words = " ".join(map(str, default))
    parser.add_argument(name, type=_positive, nargs="*", default=default, help=f"{what}, by default {words}")


def batches(parser, quick, default=(1, 2, 4, 8)):
    """Add ``--batches``."""
    integers(parser, "--batches", [2] if quick else default, "numbers of images")


def sizes(parser, quick, default=(400, 500, 600, 700, 800, 1000, 1333)):
    """Add ``--sizes``."""
    integers(parser, "--sizes", [96] if quick else default, "shorter sides of the image in pixels")


def _positive(word):
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _device(word):
    try:
        device = torch.device(word)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"cpu or cuda, got {word}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("cuda was asked for, but torch sees no GPU")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
