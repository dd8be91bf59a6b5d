"""Arguments of ``predict``."""

import argparse
import os
import re
from pathlib import Path

from retina_plugin.cli.dataset_arguments import add_dataset_arguments
from retina_plugin.core.errors import ConfigError
from retina_plugin.runtime.backend import ModelSource
from retina_plugin.runtime.inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from retina_plugin.tools.predict.run import FORMATS, predict

_EXAMPLES = """\
examples:
  retina-plugin predict output/mine photos/ --output found
  retina-plugin predict output/mine a.jpg 'b/*.png' clip.mp4 --output found --score-threshold 0.5
  retina-plugin predict output/mine photos/ --output labels --format yolo --score-threshold 0.5 Tree=0.3
  retina-plugin predict --config-file my.yaml --weights model.pth photos/ --output found TEST.PRECISION bf16
  torchrun --nproc-per-node 8 -m retina_plugin predict output/mine photos/ --recursive --output found --no-draw

Exit status 0: all inputs were read; 1: some could not be read, the others are done; 2: nothing was done (error: ...);
75: stopped by Ctrl-C or SIGTERM with the results so far."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, _EXAMPLES
    parser.usage = "%(prog)s MODEL INPUT [INPUT ...] --output DIR [options] [KEY VALUE ...]"
    add = parser.add_argument
    add(
        "words",
        nargs="+",
        metavar="MODEL INPUT",
        help="MODEL is OUTPUT_DIR of a training, left out with --config-file. An INPUT is an image, a video, a folder, "
        "a pattern in quotes, a .txt file with an input in each line, the number of a camera, or rtsp://... Last, KEY "
        "VALUE pairs override the configuration",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the results")
    add("--config-file", metavar="FILE", help="configuration, in place of MODEL")
    add("--weights", metavar="FILE", help="weights (default: the last checkpoint in MODEL, or MODEL.WEIGHTS)")
    add("--device", help="cpu, cuda, ... (default: that of the configuration; the CPU if there is no GPU)")
    add(
        "--score-threshold",
        nargs="+",
        default=[],
        metavar="SCORE",
        help="lowest score of a detection, for all classes (0.5), single ones (Tree=0.4) or both (0.5 Tree=0.4) "
        "(default: MODEL.RETINANET.SCORE_THRESH_TEST, as in the evaluation, and 0.5 in annotated images)",
    )
    add("--recursive", action="store_true", help="look into the folders of folders, too")
    add("--batch-size", type=int, default=1, metavar="N", help="images in the model at a time (default: %(default)s)")
    add("--workers", type=int, metavar="N", help="threads that decode images (default: one a core, at most 8)")
    add("--format", default="", metavar="NAME,NAME", help=f"write detections as labels, too: {', '.join(FORMATS)}")
    add("--no-draw", action="store_true", help="write no annotated images and videos")
    add("--save-video", action="store_true", help="write annotated videos of cameras and streams, not of files alone")
    add("--overwrite", action="store_true", help="move results that are in DIR into DIR/previous_run_N")
    add("--dataset", metavar="NAME", help="data set registered with Detectron2, whose images are the inputs")
    add_dataset_arguments(parser, "INPUT")
    add("--num-gpus", type=int, metavar="N", help="processes that share the inputs, one a GPU (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    thresholds, swallowed = _split_thresholds(args.score_threshold)
    words, opts = _split_overrides(args.words)
    more_words, more_opts = _split_overrides(swallowed)
    words, opts = words + more_words, opts + more_opts
    if args.config_file is None and not words:
        raise ConfigError(["there is no MODEL: name OUTPUT_DIR of a training, or give --config-file and --weights"])
    model = words.pop(0) if args.config_file is None else args.config_file
    if args.config_file is None and not os.path.isdir(model):
        advice = "For a configuration file, give --config-file FILE and --weights FILE"
        raise ConfigError([f"MODEL is the folder of a training, and {model} is no folder. {advice}"])
    source = ModelSource(model, args.weights, args.device, opts, args.imports, args.allow_unsafe_yaml)
    return predict(
        source,
        words,
        args.output,
        dataset=args.dataset,
        json_file=args.json,
        image_root=args.images,
        recursive=args.recursive,
        score_threshold=thresholds or None,
        batch_size=args.batch_size,
        num_workers=args.workers,
        formats=[name for name in args.format.split(",") if name],
        draw=not args.no_draw,
        save_video=args.save_video,
        overwrite=args.overwrite,
        num_gpus=args.num_gpus,
    )


def _split_thresholds(words: list[str]) -> tuple[dict[str | None, float], list[str]]:
    """Split words into thresholds by class name, and the words behind them, which argparse takes for thresholds."""
    thresholds: dict[str | None, float] = {}
    for i, word in enumerate(words):
        name, equals, number = word.rpartition("=")
        try:
            thresholds[name if equals else None] = float(number)
        except ValueError:
            if not i:
                raise ConfigError(
                    [f"--score-threshold is {word}, not a score (0.5) or CLASS=SCORE (Tree=0.4)"]
                ) from None
            return thresholds, words[i:]
    return thresholds, []


def _split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Split words at the first key of the configuration that names no file."""
    for i, word in enumerate(words):
        is_key = re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|SEED|OUTPUT_DIR|VERSION", word)
        if is_key and not word.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)) and not os.path.lexists(word):
            return words[:i], words[i:]
    return words, []
