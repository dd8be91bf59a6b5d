#!/usr/bin/env python
"""Train or evaluate a RetinaNet.

    python train_net.py --config-file configs/retinanet_R101.yaml --num-gpus 8
    python train_net.py --config-file configs/retinanet_R50.yaml --eval-only MODEL.WEIGHTS model_final.pth
    torchrun --nproc-per-node 8 train_net.py --config-file configs/retinanet_R101.yaml

Arguments are those of Detectron2's ``tools/train_net.py`` and a few more; see --help. Exit code 75: stopped by Ctrl-C
or SIGTERM with a checkpoint, to go on from with --resume.
"""

import sys

from retina_plugin import engine
from retina_plugin.core.errors import UserError, format_error


def main(cfg, args):
    """The job of one process."""
    engine.setup_rank(cfg, args)
    if args.eval_only:
        return engine.evaluate(cfg, resume=args.resume)
    trainer = engine.RetinaTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    try:
        return trainer.train()
    except engine.TrainingInterrupted:
        sys.exit(engine.EXIT_INTERRUPTED)


if __name__ == "__main__":
    args = engine.argument_parser().parse_args()
    try:
        cfg = engine.load_config(args)
        engine.prepare_output_dir(cfg, args)
        engine.launch(main, cfg, args)
    except UserError as error:
        sys.exit(format_error(error))
