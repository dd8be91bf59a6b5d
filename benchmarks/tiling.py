"""Peak memory of tiled inference on a large image: all of the process, with torch and Detectron2."""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from detectron2.modeling import build_model

from benchmarks import models
from retina_plugin.data.windows import WindowsMapper
from retina_plugin.modeling.inference.tiled import TiledInference

_WRITER = Path(__file__).with_name("large_image.py")


def main(argv=None):
    """Make an image, detect objects in it, and print the peak."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiling", description=__doc__, allow_abbrev=False)
    parser.add_argument("--side", type=int, default=20_000, help="of the image in pixels, by default 20000")
    parser.add_argument("--file", choices=("png", "jpg", "tif"), default="png", help="by default png")
    parser.add_argument("--network", choices=("small", "R50"), default="small", help="by default small")
    parser.add_argument("--threads", type=int, default=2, help="threads on the CPU, by default 2")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="such as TEST.TILE.SIZE 2000")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f"imported: {_peak():.0f} MB")
    # Random weights have no high scores: without a threshold, each tile has TEST.DETECTIONS_PER_IMAGE detections.
    tiles = ["TEST.TILE.SIZE", 1000, "TEST.TILE.OVERLAP", 100, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    cfg = models.plugin_config("cpu", [*(models.SMALL if args.network == "small" else ()), *tiles, *args.opts])
    detector = TiledInference(cfg, build_model(cfg).eval())
    print(f"with the model: {_peak():.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"image.{args.file}")
        subprocess.run([sys.executable, _WRITER, path, str(args.side)], check=True)  # whose memory does not count
        image = WindowsMapper(cfg.INPUT.FORMAT)({"file_name": str(path)})
        number, start = len(detector.tiles(image["windows"])), time.perf_counter()
        (found,) = detector([image])
    seconds = time.perf_counter() - start
    print(f"{number} tiles, {len(found['instances'])} detections, {seconds:.0f} s, peak: {_peak():.0f} MB")


def _peak():
    """Largest resident size of this process so far, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
