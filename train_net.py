#!/usr/bin/env python
"""Train or evaluate a RetinaNet.

    python train_net.py --config-file configs/retinanet_R101.yaml --num-gpus 8
    python train_net.py --config-file configs/retinanet_R50.yaml --eval-only MODEL.WEIGHTS model_final.pth

Arguments are those of Detectron2's ``tools/train_net.py``, and --overwrite; see --help. Exit code 75: stopped by Ctrl-C
or SIGTERM with a checkpoint, to go on from with --resume.
"""

import sys

from retina_plugin import ConfigError, engine  # first: makes Detectron2 importable
from retina_plugin.checkpoint import CheckpointError
from retina_plugin.data.reading import TrainingDataError
from retina_plugin.engine import DivergenceError

from detectron2.engine import launch  # isort: skip


def main(cfg, args):
    """The job of one process."""
    engine.setup_worker(cfg, args)
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
        engine.claim_run_folder(
            cfg,
            resume=args.resume,
            overwrite=args.overwrite,
            eval_only=args.eval_only,
            machine_rank=args.machine_rank,
        )
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(cfg, args),
        )
    except ConfigError as error:
        sys.exit("\n".join(f"error: {problem}" for problem in error.problems))
    except (CheckpointError, TrainingDataError) as error:
        sys.exit(f"error: {error}")
    except DivergenceError as error:
        sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))
