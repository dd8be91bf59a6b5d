"""Trains or evaluates a detector: everything that ``train_net.py`` and ``retina-plugin train`` do."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from detectron2.config import CfgNode
from torch import nn

from retina_plugin.checkpoint import RetinaCheckpointer
from retina_plugin.config import get_cfg
from retina_plugin.core.errors import UserError, format_error
from retina_plugin.engine.arguments import argument_parser
from retina_plugin.engine.launch import launch
from retina_plugin.engine.output_dir import prepare_output_dir
from retina_plugin.engine.resume import find_checkpoint
from retina_plugin.engine.setup import load_config, setup_rank
from retina_plugin.engine.signals import EXIT_INTERRUPTED, TrainingInterrupted
from retina_plugin.engine.trainer import RetinaTrainer, evaluate

AddConfig = Callable[[CfgNode], object]

_FIRST_STEPS = """\
Name a configuration or data:
  python train_net.py --config-file configs/quick_start.yaml                  a first detector, in minutes on a CPU
  python train_net.py --train-json FILE --train-images DIR                    images of your own, in COCO's format
  python train_net.py --config-file configs/retinanet_R50.yaml --num-gpus 8   COCO, in $DETECTRON2_DATASETS
and what differs from it as KEY VALUE pairs at the end, such as:
  python train_net.py --config-file FILE DATASETS.TRAIN '("name",)' SOLVER.MAX_ITER 1000 OUTPUT_DIR output/first
--resume goes on with the run in OUTPUT_DIR, --eval-only evaluates MODEL.WEIGHTS, --help lists all arguments.
error: there is no --config-file"""


def main(
    argv: Sequence[str] | None = None,
    *,
    add_config: AddConfig | Sequence[AddConfig] = (),
    trainer: type[RetinaTrainer] = RetinaTrainer,
) -> None:
    """Train or evaluate on all ranks that the command line asks for.

    Args:
        argv: arguments, see ``--help``; None for those of this process. Without any, and without ``add_config``, what
            to do is printed.
        add_config: one or several functions of modules that add keys to a ``CfgNode`` in place.
        trainer: a class of a module; trains, and builds model, data and evaluators.

    Raises:
        SystemExit: with a message for the user; or with code 75 if a signal stopped the training after a checkpoint;
            or with code 2 if the arguments cannot be parsed or there are none.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv and not add_config:
        print(_FIRST_STEPS, file=sys.stderr)
        sys.exit(2)
    args = argument_parser().parse_args(argv)
    try:
        cfg = load_config(args, get_cfg(*([add_config] if callable(add_config) else add_config)), trainer)
        with prepare_output_dir(cfg, args):
            launch(partial(_run_rank, trainer), cfg, args)
    except UserError as error:
        sys.exit(format_error(error))


def _run_rank(trainer_class: type[RetinaTrainer], cfg: CfgNode, args: argparse.Namespace) -> None:
    if args.resume:  # before anything is written
        find_checkpoint(RetinaCheckpointer(nn.Identity(), cfg.OUTPUT_DIR, allow_pickle=cfg.MODEL.WEIGHTS_ALLOW_PICKLE))
    setup_rank(cfg, args)
    if args.eval_only:
        evaluate(cfg, resume=args.resume, trainer=trainer_class)
        return
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=args.resume)
    try:
        trainer.train()
    except TrainingInterrupted:
        sys.exit(EXIT_INTERRUPTED)
