"""Trains or evaluates a detector: everything that ``train_net.py`` and ``retina-plugin train`` do."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from detectron2.config import CfgNode

from retina_plugin.config import get_cfg
from retina_plugin.core.errors import UserError, format_error
from retina_plugin.engine.arguments import argument_parser
from retina_plugin.engine.launch import launch
from retina_plugin.engine.output_dir import prepare_output_dir
from retina_plugin.engine.setup import load_config, setup_rank
from retina_plugin.engine.signals import EXIT_INTERRUPTED, TrainingInterrupted
from retina_plugin.engine.trainer import RetinaTrainer, evaluate

AddConfig = Callable[[CfgNode], object]


def main(
    argv: Sequence[str] | None = None,
    *,
    add_config: AddConfig | Sequence[AddConfig] = (),
    trainer: type[RetinaTrainer] = RetinaTrainer,
) -> None:
    """Train or evaluate on all ranks that the command line asks for.

    Args:
        argv: arguments, see ``--help``; None for those of this process.
        add_config: one or several functions of modules that add keys to a ``CfgNode`` in place.
        trainer: a class of a module; trains, and builds model, data and evaluators.

    Raises:
        SystemExit: with a message for the user; or with code 75 if a signal stopped the training after a checkpoint.
    """
    args = argument_parser().parse_args(argv)
    try:
        cfg = load_config(args, get_cfg(*([add_config] if callable(add_config) else add_config)))
        with prepare_output_dir(cfg, args):
            launch(partial(_run_rank, trainer), cfg, args)
    except UserError as error:
        sys.exit(format_error(error))


def _run_rank(trainer_class: type[RetinaTrainer], cfg: CfgNode, args: argparse.Namespace) -> None:
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
