"""Convert weights of torchvision, mmdetection or Detectron for this plugin, or this plugin's for another framework."""

import textwrap
from pathlib import Path

from detectron2.config import get_cfg

from retina_plugin.checkpoint import CheckpointError, read_checkpoint
from retina_plugin.checkpoint.converters import SOURCES, TARGETS, convert, detect_source
from retina_plugin.config import add_retina_config, merge_config
from retina_plugin.tools.convert import files


def add_arguments(parser):
    parser.add_argument("src", type=Path, metavar="SRC", help="file of weights")
    parser.add_argument("dst", type=Path, metavar="DST", help="writes DST.pth, and DST.yaml for train_net.py")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument(
        "--from", dest="source", choices=SOURCES, help="what wrote SRC (default: seen from its names)"
    )
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
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read a file that may run code; for files that you trust"
    )


def run(args):
    weights_path, config_path = files.destination(args.dst)
    checkpoint = read_checkpoint(str(args.src), allow_pickle=args.allow_pickle)
    try:
        if args.target:
            _export(args, checkpoint, weights_path, config_path)
        else:
            _import(args, checkpoint, weights_path, config_path)
    except CheckpointError as error:
        raise CheckpointError(f"{args.src}: {error}") from None


def _import(args, checkpoint, weights_path, config_path):
    source = args.source or detect_source(checkpoint["model"])
    conversion = convert(checkpoint, source, args.norm_eps)
    config = files.full_config(conversion, weights_path)
    files.check_fits(config, conversion.model)
    _write(args, conversion, weights_path, config, config_path, source)
    _report(
        f"{len(checkpoint['model'])} weights of {source} became {len(conversion.model)} of FocalRetinaNet", conversion
    )


def _export(args, checkpoint, weights_path, config_path):
    conversion = TARGETS[args.target].export(checkpoint, _config_of(args))
    if conversion.config:
        config = files.with_weights(conversion.config, weights_path)
        files.check_fits(config, conversion.model)
        _write(args, conversion, weights_path, config, config_path, "retina_plugin")
    else:  # torchvision's files are nothing but weights
        files.write({weights_path: conversion.model})
    _report(f"{len(checkpoint['model'])} weights became {len(conversion.model)} of {args.target}", conversion)


def _config_of(args):
    beside = [args.src.with_suffix(".yaml"), args.src.with_name("config.yaml")]
    path = args.config_file or next((path for path in beside if path.is_file()), None)
    if path is None:
        raise CheckpointError(
            f"--to needs the configuration of the weights, and there is neither {beside[0]} nor {beside[1]}: "
            "name it with --config-file"
        )
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, str(path))
    return cfg


def _write(args, conversion, weights_path, config, config_path, source):
    weights = {"model": conversion.model, "__author__": files.AUTHOR}
    if conversion.class_names is not None:
        weights["class_names"] = list(conversion.class_names)
    comments = [f"Converted from {args.src.name} ({source}) by python -m retina_plugin convert.", *conversion.notes]
    lines = [line for comment in comments for line in textwrap.wrap(comment, 115)]
    files.write({weights_path: weights, config_path: files.as_yaml(config, lines)})
    print(config_path.resolve())


def _report(sentence, conversion):
    print(f"{sentence}.")
    for note in conversion.notes:
        print(f"- {note}")
