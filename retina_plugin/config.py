"""Every key that the plugin adds, and reading configuration files with errors that help.

What a configuration may contain is checked in :mod:`retina_plugin.config_checks`.
"""

import difflib

from detectron2.config import CfgNode


class ConfigError(ValueError):
    """A configuration that cannot be used. The message has one line a problem: what, where, what to do."""

    def __init__(self, problems):
        super().__init__("\n".join(problems))
        self.problems = list(problems)

    def __reduce__(self):  # it may cross processes
        return type(self), (self.problems,)


def add_retina_config(cfg):
    """Add the plugin's keys, with their defaults, to a Detectron2 ``CfgNode`` (in place).

    Every other key of RetinaNet is Detectron2's own (``MODEL.RETINANET``, ``MODEL.FPN``,
    ``MODEL.ANCHOR_GENERATOR``) and keeps its meaning and default.
    """
    retinanet, fpn = cfg.MODEL.RETINANET, cfg.MODEL.FPN

    # The head, a name in RETINANET_HEAD_REGISTRY.
    retinanet.HEAD_NAME = "RetinaNetHead"
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
    # (retina_plugin.losses.kernels), or from their formula and autograd. The numbers are the same up to rounding.
    retinanet.FUSED_LOSS = True
    # What both losses are divided by: "ema" (moving average of this process's positive anchors, as
    # Detectron2), "positives" (this process's, as the paper), "positives_global" (mean over all processes).
    retinanet.LOSS_NORMALIZER = "ema"
    # Whether the anchors that overlap a box most are positive although their IoU is below the threshold.
    # Detectron2's RetinaNet always does this; the paper names the thresholds alone.
    retinanet.ALLOW_LOW_QUALITY_MATCHES = True
    # Whether boxes are cut at the borders of the picture before non-maximum suppression, as in torchvision, mmdetection
    # and Detectron (1), or after it, as in Detectron2.
    retinanet.CLIP_BOXES_BEFORE_NMS = False
    # What P6 is made from: "res5" (C5, as the paper and the model zoo) or "p5".
    fpn.TOP_BLOCK_IN_FEATURE = "res5"
    # Whether P7 is made from ReLU(P6), as the paper says, or from P6 as it is, as in mmdetection.
    fpn.TOP_BLOCK_RELU = True
    # Pictures are padded to multiples of this: 32, the stride of C5, as Detectron2, or 128, as Detectron (1).
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
    cfg.SOLVER.AUTO_SCALE = 0
    # How many parts a process computes its images of a step in, one after the other, so that the memory is that of a
    # part. SOLVER.IMS_PER_BATCH stays the images of a step over all processes, and the training stays the same:
    # gradients, loss normaliser and what is logged are those of the whole batch. Only the statistics of a norm in
    # training (BN, SyncBN) are those of a part.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # A step whose losses or gradients are not finite is not applied. Training ends when more than this many of the last
    # 1000 iterations were such steps; 0: with the first, as in Detectron2. Overflows of fp16 do not count.
    cfg.SOLVER.MAX_NONFINITE_STEPS = 10
    # Every how many iterations, and at the end, the losses of training are computed on DATASETS.TEST; 0: never.
    cfg.TEST.LOSS_PERIOD = 0
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


def require_retina_config(cfg):
    """Raise ``ConfigError`` for a ``CfgNode`` without the plugin's keys, in place of an attribute that is missing."""
    if "TOP_BLOCK_IN_FEATURE" not in cfg.MODEL.FPN:
        raise ConfigError(
            ["the configuration has no keys of retina_plugin: call add_retina_config(cfg) after get_cfg()"]
        )


def merge_config(cfg, config_file="", opts=()):
    """Merge a YAML file and command-line overrides into a ``CfgNode`` (in place).

    Args:
        cfg: the node that holds every known key, e.g. ``get_cfg()`` after :func:`add_retina_config`.
        config_file: path of a YAML file, which may have a ``_BASE_``; empty for none.
        opts: ``["KEY", "VALUE", ...]``, as Detectron2's argument parser returns them.

    Raises:
        ConfigError: file not found or not YAML, unknown keys (all of them, each with the key that may have
            been meant), a value of another type than the key's default, overrides that are not pairs.
    """
    known = dict(flatten(cfg))
    opts = list(opts)
    if len(opts) % 2:
        words = " ".join(map(str, opts))
        raise ConfigError([f"overrides come in pairs, KEY VALUE, but there are {len(opts)} words: {words}"])
    if config_file:
        loaded = _load(config_file)
        # An older format has other keys; Detectron2 converts it while merging.
        if loaded.get("VERSION", cfg.VERSION) == cfg.VERSION:
            _check_keys(flatten(loaded), known, config_file)
        _merge(lambda: cfg.merge_from_file(config_file), config_file)
    _check_keys(zip(opts[::2], opts[1::2]), known, "command line")
    _merge(lambda: cfg.merge_from_list(opts), "command line")


def flatten(node, prefix=""):
    """Yield ("A.B.C", value) of every leaf of nested dicts."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def did_you_mean(name, candidates):
    """A sentence that proposes the candidate closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _load(config_file):
    try:
        return CfgNode(CfgNode.load_yaml_with_base(config_file, allow_unsafe=True))
    except OSError as error:
        name = error.filename or config_file
        raise ConfigError([f"cannot read config file {name}: {error.strerror}"]) from None
    except Exception as error:  # YAML's and fvcore's many kinds
        reason = " ".join(str(error).split())
        raise ConfigError([f"{config_file} is not a YAML mapping of keys to values: {reason}"]) from None


def _check_keys(items, known, where):
    problems = []
    for key, value in items:
        if any(k.startswith(f"{key}.") for k in known):
            if value != {}:
                problems.append(f"{where}: {key} is a section with keys of its own, got {value}")
        elif key not in known:
            problems.append(_unknown_key(key, known, where))
    if problems:
        raise ConfigError(problems)


def _unknown_key(key, known, where):
    # The most frequent slips are the right name under the wrong node, and the beginning of a name.
    name = key.rpartition(".")[2]
    likely = [k for k in known if k.rpartition(".")[2] == name] or [k for k in known if k.startswith(key)]
    likely.sort(key=lambda k: not k.startswith("MODEL.RETINANET."))
    hint = f" Did you mean {likely[0]}?" if likely else did_you_mean(key, known)
    return f"unknown key {key} ({where}).{hint}"


def _merge(merge, where):
    try:
        merge()
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError([f"{where}: {' '.join(map(str, error.args))}"]) from None
