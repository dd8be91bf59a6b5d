"""Every key that the plugin adds to Detectron2's configuration, with its default."""

from detectron2.config import CfgNode

from retina_plugin.core.errors import ConfigError

# The names that TEST.PRECISION and SOLVER.AMP.PRECISION can have.
PRECISIONS = ("fp32", "bf16", "fp16")
TRAINING_PRECISIONS = ("fp16", "bf16")


def add_retina_config(cfg: CfgNode) -> None:
    """Add the plugin's keys to a Detectron2 ``CfgNode`` (in place). Detectron2's keys keep their defaults."""
    retinanet, fpn = cfg.MODEL.RETINANET, cfg.MODEL.FPN

    # Modules of projects (names or absolute paths) to import when the file is read; recorded from --import.
    cfg.IMPORTS = []
    # COCO files to register as data sets, each [name, file, folder of its images]; recorded from --train-json.
    cfg.DATASETS.COCO_FILES = []
    # The head, a name in RETINANET_HEAD_REGISTRY.
    retinanet.HEAD_NAME = "RetinaNetHead"
    # The assigner of ground truth to anchors, a name in ASSIGNER_REGISTRY.
    retinanet.ASSIGNER = "max_iou"
    # The box coder of box loss and post-processing, a name in BOX_CODER_REGISTRY.
    retinanet.BOX_CODER = "delta_xywh"
    # The classification loss, a name in CLASSIFICATION_LOSS_REGISTRY.
    retinanet.CLS_LOSS = "focal"
    # Weight alpha of each class, K numbers; empty: FOCAL_LOSS_ALPHA for all, where -1.0 (or null) turns it off.
    retinanet.FOCAL_LOSS_ALPHA_PER_CLASS = []
    # FL*: steepness and shift.
    retinanet.FOCAL_STAR_GAMMA = 2.0
    retinanet.FOCAL_STAR_BETA = 1.0
    # OHEM: anchors kept per image, and the NMS threshold (IoU) on predicted boxes, ranked by loss.
    retinanet.OHEM_BATCH_SIZE = 128
    retinanet.OHEM_NMS_THRESH = 0.5
    # Hinge loss: the p_t above which it is zero.
    retinanet.HINGE_MARGIN = 0.5
    # Compute focal, focal_star and cross_entropy in one pass over the logits (losses/fused), or by autograd.
    retinanet.FUSED_LOSS = True
    # Divisor of both losses: "ema" (moving average of this process's positive anchors, as Detectron2), "positives"
    # (this process's, as the paper), "positives_global" (mean over all processes).
    retinanet.LOSS_NORMALIZER = "ema"
    # Make the anchors with the highest IoU to a box positive even below the threshold, as Detectron2 always does.
    retinanet.ALLOW_LOW_QUALITY_MATCHES = True
    # Clip boxes to the image before NMS, as torchvision, mmdetection and Detectron (1), or after it, as Detectron2.
    retinanet.CLIP_BOXES_BEFORE_NMS = False
    # Input of P6: "res5" (C5, as the paper and the model zoo) or "p5".
    fpn.TOP_BLOCK_IN_FEATURE = "res5"
    # Compute P7 from ReLU(P6), as the paper, or from P6, as mmdetection.
    fpn.TOP_BLOCK_RELU = True
    # Images are padded to multiples of this: 32, the stride of C5, as Detectron2, or 128, as Detectron (1).
    fpn.SIZE_DIVISIBILITY = 32
    # Of build_p3p7_timm_fpn_backbone: a model of timm; its feature maps of strides 8, 16 and 32 (empty: found by them);
    # its batch norms, "FrozenBN" or "BN".
    cfg.MODEL.TIMM = CfgNode({"NAME": "", "OUT_INDICES": [], "NORM": "FrozenBN"})
    # Memory format of backbone and head: torch.channels_last. Faster, on a CPU without AVX-512 in inference only.
    cfg.MODEL.CHANNELS_LAST = False
    # Fold each FrozenBN of the backbone into the weight of its convolution.
    cfg.MODEL.BACKBONE.FOLD_FROZEN_BN = False
    # Precision of backbone and head; weights stay in float32. In inference: "fp32", "bf16" or "fp16"; in training
    # with SOLVER.AMP.ENABLED: "fp16" (scaled gradients, needs a GPU) or "bf16".
    cfg.TEST.PRECISION = "fp32"
    cfg.SOLVER.AMP.PRECISION = "fp16"
    # Images per step that the schedule is written for: with another SOLVER.IMS_PER_BATCH it is scaled. 0: it is not.
    cfg.SOLVER.REFERENCE_BATCH_SIZE = 0
    # Micro-batches per step and process, to save memory. SOLVER.IMS_PER_BATCH stays the images of a whole step, and
    # the training stays the same, except for the batch statistics of norms in training (BN, SyncBN).
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # Steps that are not finite are not applied, and end training if there are more in 1000 iterations; 0: the first
    # one does, as in Detectron2. Overflows of fp16 do not count.
    cfg.SOLVER.MAX_NONFINITE_STEPS = 10
    # Images with a side longer than SIZE pixels are trained on, or evaluated, in tiles of SIZE pixels a side that
    # overlap by OVERLAP or more pixels; 0: whole. Tiles are resized as images are. BATCH: tiles in the model at a time.
    cfg.INPUT.TILE = CfgNode({"SIZE": 0, "OVERLAP": 100})
    cfg.TEST.TILE = CfgNode({"SIZE": 0, "OVERLAP": 100, "BATCH": 1})
    # Iterations between validation losses on DATASETS.TEST; 0: never.
    cfg.TEST.VAL_LOSS_PERIOD = 0
    # Metric of model_best.pth: "bbox/AP", "SET/bbox/AP" (of several sets), "validation/total_loss"; "": none. The best
    # value is the highest ("max") or the lowest ("min").
    cfg.TEST.BEST_CHECKPOINT = CfgNode({"METRIC": "", "MODE": "max"})
    # Evaluations without an improvement of that metric by more than MIN_DELTA after which training ends; 0: never.
    cfg.TEST.EARLY_STOPPING = CfgNode({"PATIENCE": 0, "MIN_DELTA": 0.0})
    # Detections per image that count for COCO's AP; 100 in all published results.
    cfg.TEST.AP_DETECTIONS_PER_IMAGE = 100
    # Iterations between lines in the log, lines in metrics.json and points in TensorBoard.
    cfg.LOG_PERIOD = 20
    # Give the same bits in two runs with one SEED on the same machine. Slower on a GPU.
    cfg.DETERMINISTIC = False
    # Allow weights whose pickle calls any function or class. Otherwise reading a file runs none of its code.
    cfg.MODEL.WEIGHTS_ALLOW_PICKLE = False
    # Unreadable training images that are replaced by others before training stops; -1: 1 % of all, at least 10.
    cfg.DATALOADER.MAX_UNREADABLE = -1


def require_retina_config(cfg: CfgNode) -> None:
    """Raise ``ConfigError`` for a ``CfgNode`` without the plugin's keys, in place of an attribute that is missing."""
    if "TOP_BLOCK_IN_FEATURE" not in cfg.MODEL.FPN:
        raise ConfigError(
            ["the configuration has no keys of retina_plugin: call add_retina_config(cfg) after get_cfg()"]
        )
