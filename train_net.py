#!/usr/bin/env python
"""Train or evaluate a RetinaNet.

    python train_net.py --config-file configs/retinanet_R101.yaml --num-gpus 8
    python train_net.py --config-file configs/retinanet_R50.yaml --eval-only MODEL.WEIGHTS model_final.pth
    torchrun --nproc-per-node 8 train_net.py --config-file configs/retinanet_R101.yaml

Arguments are those of Detectron2's ``tools/train_net.py`` and a few more; see --help. Exit code 75: stopped by Ctrl-C
or SIGTERM with a checkpoint, to go on from with --resume.
"""

from retina_plugin.engine.train_net import main

if __name__ == "__main__":
    main()
