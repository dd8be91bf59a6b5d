"""Measures what ``predict`` adds to the model: reading, decoding and resizing files, drawing, writing."""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import retina_plugin  # noqa: F401  isort: skip

from benchmarks import models, options
from benchmarks.case import Step
from benchmarks.pairing import clock_of, ratio, take_turns
from retina_plugin import Predictor
from retina_plugin.runtime.backend import Prepared
from retina_plugin.runtime.images import read_image
from retina_plugin.runtime.inputs import find_sources
from retina_plugin.tools.predict.names import annotated_names
from retina_plugin.tools.predict.run import Job, detect_share

# A small detector, whose time the rest has to hide behind.
NETWORK = (*models.SMALL, "MODEL.FPN.OUT_CHANNELS", 64, "MODEL.RETINANET.NUM_CONVS", 1)
LOOP, STREAM, NO_DRAW, ALL = "loop over the model", "Predictor.stream", "predict --no-draw", "predict"


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--images", type=int, default=4 if quick else 200, help="JPEG files, by default 200")
    parser.add_argument("--side", type=int, default=64 if quick else 320, help="INPUT.MIN_SIZE_TEST, by default 320")


def write_photos(folder: Path, count: int, width: int = 640, height: int = 480) -> list[Path]:
    """Write JPEG files as large as photographs of that size: smooth, with some noise."""
    random = np.random.default_rng(0)
    files = []
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
        noise = random.normal(0, 8, (height, width, 3))
        pixels = (np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)
        files.append(folder / f"{i}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=90)
    return files


def implementations(folder: Path, files: list[Path], predictor: Predictor) -> dict[str, Callable[[], object]]:
    """What takes turns, by name. The loop calls the model on images that are decoded and resized already."""
    backend = predictor.backend
    prepared: list[Prepared] = [backend.prepare(read_image(file)) for file in files]
    sources = find_sources(files)

    def loop() -> None:
        for image in prepared:
            backend.infer([image])

    return {
        LOOP: loop,
        STREAM: lambda: list(predictor.stream(files)),
        NO_DRAW: lambda: detect_share(Job(folder, sources, None, {}), predictor),
        ALL: lambda: detect_share(Job(folder, sources, annotated_names(sources), {}), predictor),
    }


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Run the benchmark and print a table; returns the seconds of every round."""
    args = options.parse(sys.modules[__name__], argv)
    torch.set_num_threads(args.threads)
    overrides = [*NETWORK, "INPUT.MIN_SIZE_TEST", args.side]
    cfg = models.plugin_config(args.device, overrides)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # no progress bars
        cfg.MODEL.WEIGHTS = str(Path(folder, "model.pth"))
        torch.save({"model": models.build(cfg, models.weights(NETWORK)).state_dict()}, cfg.MODEL.WEIGHTS)
        predictor = Predictor(cfg)
        files = write_photos(Path(folder), args.images)
        steps = {name: Step(run) for name, run in implementations(Path(folder), files, predictor).items()}
        clock = clock_of(torch.device("cpu"))  # of the wall: threads and files are what is measured
        times = take_turns(steps, rounds=args.rounds, warmup=1, seconds=args.seconds, clock=clock)
    print(f"# predict ({args.images} images, {args.device}, {args.threads} threads, torch {torch.__version__})\n")
    print(f"| | / {LOOP} | ms an image |\n|---|--:|--:|")
    for name, seconds in times.items():
        print(f"| {name} | {ratio(seconds, times[LOOP]):.3f} | {1000 * statistics.median(seconds) / args.images:.4g} |")
    return times


if __name__ == "__main__":
    main()
