"""Every key that the plugin adds to Detectron2's configuration, with its default."""

from detectron2.config import CfgNode

from retina_plugin.core.errors import ConfigError


def add_retina_config(cfg: CfgNode) -> None:
    """Add the plugin's keys, with their defaults, to a Detectron2 ``CfgNode`` (in place).

    Every other key of RetinaNet is Detectron2's own (``MODEL.RETINANET``, ``MODEL.FPN``,
    ``MODEL.ANCHOR_GENERATOR``) and keeps its meaning and default.
    """
    retinanet, fpn = cfg.MODEL.RETINANET, cfg.MODEL.FPN

    # Modules of projects (names, or absolute paths), which are imported when the configuration is read; set by
    # add_config functions and --import.
    cfg.IMPORTS = []
    # The head, a name in RETINANET_HEAD_REGISTRY.
    retinanet.HEAD_NAME = "RetinaNetHead"
    # The assigner of ground truth to anchors, a name in ASSIGNER_REGISTRY.
    retinanet.ASSIGNER = "max_iou"
    # The box coder of box loss and post-processing, a name in BOX_CODER_REGISTRY.
    retinanet.BOX_CODER = "delta_xywh"
    # The classification loss, a name in CLASSIFICATION_LOSS_REGISTRY.
    retinanet.CLS_LOSS = "focal"
    # Weight of the positive class, for every loss: K numbers, or none, then FOCAL_LOSS_ALPHA is that of all classes.
    # There, -1.0 (or YAML's null) turns weighting off.
    retinanet.FOCAL_LOSS_ALPHA_PER_CLASS = []
    # FL*: steepness and shift.
    retinanet.FOCAL_STAR_GAMMA = 2.0
    retinanet.FOCAL_STAR_BETA = 1.0
    # OHEM: anchors kept of each image, and the IoU above which of two anchors the one with the lower loss goes.
    retinanet.OHEM_BATCH_SIZE = 128
    retinanet.OHEM_NMS_THRESH = 0.5
    # Hinge loss: the p_t above which it is zero.
    retinanet.HINGE_MARGIN = 0.5
    # Whether focal, focal_star and cross_entropy are computed in one pass over the logits
    # (retina_plugin.losses.fused), or from their formula and autograd. The numbers are the same up to rounding.
    retinanet.FUSED_LOSS = True
    # What both losses are divided by: "ema" (moving average of this process's positive anchors, as
    # Detectron2), "positives" (this process's, as the paper), "positives_global" (mean over all processes).
    retinanet.LOSS_NORMALIZER = "ema"
    # Whether the anchors that overlap a box most are positive although their IoU is below the threshold.
    # Detectron2's RetinaNet always does this; the paper names the thresholds alone.
    retinanet.ALLOW_LOW_QUALITY_MATCHES = True
    # Whether boxes are cut at the borders of the image before non-maximum suppression, as in torchvision, mmdetection
    # and Detectron (1), or after it, as in Detectron2.
    retinanet.CLIP_BOXES_BEFORE_NMS = False
    # What P6 is made from: "res5" (C5, as the paper and the model zoo) or "p5".
    fpn.TOP_BLOCK_IN_FEATURE = "res5"
    # Whether P7 is made from ReLU(P6), as the paper says, or from P6 as it is, as in mmdetection.
    fpn.TOP_BLOCK_RELU = True
    # Images are padded to multiples of this: 32, the stride of C5, as Detectron2, or 128, as Detectron (1).
    fpn.SIZE_DIVISIBILITY = 32
    # Whether backbone and head keep images, weights and activations in memory with a pixel's channels side by side
    # (torch.channels_last), in which convolutions are faster; on a CPU without AVX-512 in inference alone.
    cfg.MODEL.CHANNELS_LAST = False
    # Whether a convolution of the backbone applies the FrozenBN behind it to its weight, which saves passes over the
    # activations.
    cfg.MODEL.BACKBONE.FOLD_FROZEN_BN = False
    # What backbone and head compute in, the weights staying in float32. In inference: "fp32", "bf16" or "fp16"; in a
    # training with SOLVER.AMP.ENABLED: "fp16" (scaled gradients, on a GPU alone) or "bf16".
    cfg.TEST.PRECISION = "fp32"
    cfg.SOLVER.AMP.PRECISION = "fp16"
    # The images of a step that learning rate, warm-up, steps, length and periods are written for: with another
    # SOLVER.IMS_PER_BATCH all of them are scaled. 0: they are taken as they are.
    cfg.SOLVER.REFERENCE_BATCH_SIZE = 0
    # How many parts a process computes its images of a step in, one after the other, so that the memory is that of a
    # part. SOLVER.IMS_PER_BATCH stays the images of a step over all processes, and the training stays the same:
    # gradients, loss normalizer and what is logged are those of the whole batch. Only the statistics of a norm in
    # training (BN, SyncBN) are those of a part.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # A step whose losses or gradients are not finite is not applied. Training ends when more than this many of the last
    # 1000 iterations were such steps; 0: with the first, as in Detectron2. Overflows of fp16 do not count.
    cfg.SOLVER.MAX_NONFINITE_STEPS = 10
    # Every how many iterations, and at the end, the losses of training are computed on DATASETS.TEST; 0: never.
    cfg.TEST.VAL_LOSS_PERIOD = 0
    # The metric by which model_best.pth is chosen, such as "bbox/AP", "SET/bbox/AP" (of several sets) or
    # "validation/total_loss", and whether the best value is the highest ("max") or the lowest ("min"). "": none.
    cfg.TEST.BEST_CHECKPOINT = CfgNode({"METRIC": "", "MODE": "max"})
    # Training ends after so many evaluations in which that metric was not better by more than MIN_DELTA; 0: never.
    cfg.TEST.EARLY_STOPPING = CfgNode({"PATIENCE": 0, "MIN_DELTA": 0.0})
    # Of an image, so many detections, the best ones, count for COCO's AP; 100 in all published results.
    cfg.TEST.AP_DETECTIONS_PER_IMAGE = 100
    # Every how many iterations a line is written to the log and to metrics.json, and a point to TensorBoard.
    cfg.LOG_PERIOD = 20
    # Whether two runs of one configuration with one SEED, on the same machine, give the same bits. Slower on a GPU.
    cfg.DETERMINISTIC = False
    # Whether weights may be read that name functions and classes to call, which may do anything. Without it, reading a
    # file runs nothing of it.
    cfg.MODEL.WEIGHTS_ALLOW_PICKLE = False
    # How many different training images may be unreadable, which others then stand in for, before training stops: -1
    # for 1 % of them, at least 10.
    cfg.DATALOADER.MAX_UNREADABLE = -1


def require_retina_config(cfg: CfgNode) -> None:
    """Raise ``ConfigError`` for a ``CfgNode`` without the plugin's keys, in place of an attribute that is missing."""
    if "TOP_BLOCK_IN_FEATURE" not in cfg.MODEL.FPN:
        raise ConfigError(
            ["the configuration has no keys of retina_plugin: call add_retina_config(cfg) after get_cfg()"]
        )
