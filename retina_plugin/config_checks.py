"""What would train the wrong thing, or fail late and without a name, is refused at the start.

Each check yields a line a problem: the key, its value, and what to do. What a single part can judge for
itself (a range, the name of a mode) is checked where the part is built.
"""

import itertools
import math
import os

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.solver.build import GradientClipType
from detectron2.utils.file_io import PathManager

from retina_plugin.config import ConfigError, add_retina_config, did_you_mean, flatten, require_retina_config
from retina_plugin.data.class_names import class_names
from retina_plugin.evaluation.build import BOX_EVALUATOR_TYPES
from retina_plugin.watching_checks import watching_problems

# Keys of R-CNN that have a twin in RetinaNet.
_TWINS = {
    "MODEL.ROI_HEADS.NUM_CLASSES": "MODEL.RETINANET.NUM_CLASSES",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "MODEL.RETINANET.NMS_THRESH_TEST",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": "MODEL.RETINANET.IOU_THRESHOLDS",
    "MODEL.ROI_HEADS.IOU_LABELS": "MODEL.RETINANET.IOU_LABELS",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "MODEL.RETINANET.BBOX_REG_WEIGHTS",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "MODEL.RETINANET.BBOX_REG_LOSS_TYPE",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
    "MODEL.RPN.IOU_THRESHOLDS": "MODEL.RETINANET.IOU_THRESHOLDS",
    "MODEL.RPN.IOU_LABELS": "MODEL.RETINANET.IOU_LABELS",
    "MODEL.RPN.IN_FEATURES": "MODEL.RETINANET.IN_FEATURES",
    "MODEL.RPN.NMS_THRESH": "MODEL.RETINANET.NMS_THRESH_TEST",
}
# Keys of a single loss of this plugin, and the losses that read them.
_LOSS_KEYS = {
    "FOCAL_STAR_GAMMA": ("focal_star",),
    "FOCAL_STAR_BETA": ("focal_star",),
    "OHEM_BATCH_SIZE": ("ohem", "ohem_1to3"),
    "OHEM_NMS_THRESH": ("ohem", "ohem_1to3"),
    "HINGE_MARGIN": ("hinge",),
}
_RCNN_NODES = ("MODEL.ROI_", "MODEL.RPN.", "MODEL.PROPOSAL_GENERATOR.")
_RCNN_SWITCHES = ("MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS", "TEST.AUG.ENABLED")


def check_config(cfg, *, num_gpus=1, num_machines=1, eval_only=False):
    """Check everything that is known before a job starts.

    Args:
        cfg: the full configuration.
        num_gpus: processes of each machine, one a GPU; or with ``MODEL.DEVICE`` cpu, on its cores.
        num_machines: machines that take part.
        eval_only: whether the training data sets are left alone.

    Raises:
        ConfigError: with one line for each problem.
    """
    require_retina_config(cfg)
    names = list(cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    _refuse(
        *_name_problems(cfg),
        *_model_problems(cfg),
        *_process_problems(cfg, num_gpus, num_machines, eval_only),
        *_precision_problems(cfg, eval_only),
        *_step_problems(cfg, num_gpus * num_machines, eval_only),
        *_empty_problems(cfg, eval_only),
        *_data_problems(names),
        *_evaluator_problems(cfg),
        *_class_count_problems(cfg, names),
        *(() if eval_only else watching_problems(cfg, builds_focal_retinanet(cfg))),
    )


def check_model_config(cfg):
    """Check the keys that ``FocalRetinaNet`` is built from.

    Raises:
        ConfigError: with one line for each problem.
    """
    require_retina_config(cfg)
    _refuse(*_name_problems(cfg), *_model_problems(cfg))


def check_datasets(names):
    """Check that data sets are registered and that their files exist.

    Raises:
        ConfigError: with one line for each problem.
    """
    _refuse(*_data_problems(names))


def check_class_count(cfg, dataset_name):
    """Check the number of classes against a data set that has been loaded.

    A set that is no COCO file may name its classes only then; :func:`check_config` compares all others.

    Raises:
        ConfigError: they disagree.
    """
    _refuse(*_class_count_problems(cfg, [dataset_name]))


def builds_focal_retinanet(cfg):
    """Whether the configured meta-architecture is ``FocalRetinaNet`` or a subclass, to which all checks apply."""
    from retina_plugin.modeling import FocalRetinaNet  # which imports this module

    name = cfg.MODEL.META_ARCHITECTURE
    architecture = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(architecture, type) and issubclass(architecture, FocalRetinaNet)


def _refuse(*problems):
    if problems:
        raise ConfigError(problems)


def _name_problems(cfg):
    # The registries are filled by modules that import this one.
    from retina_plugin.losses import CLASSIFICATION_LOSS_REGISTRY
    from retina_plugin.modeling import RETINANET_HEAD_REGISTRY
    from retina_plugin.modeling.precision import PRECISIONS, TRAINING_PRECISIONS

    for key, name, registry in [
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.ANCHOR_GENERATOR.NAME", cfg.MODEL.ANCHOR_GENERATOR.NAME, ANCHOR_GENERATOR_REGISTRY),
        ("MODEL.RETINANET.HEAD_NAME", cfg.MODEL.RETINANET.HEAD_NAME, RETINANET_HEAD_REGISTRY),
        ("MODEL.RETINANET.CLS_LOSS", cfg.MODEL.RETINANET.CLS_LOSS, CLASSIFICATION_LOSS_REGISTRY),
    ]:
        if name not in registry:
            known = sorted(n for n, _ in registry)
            hint = did_you_mean(name, known) or f" Registered: {', '.join(known)}."
            yield f"{key} is '{name}', which nothing registers.{hint}"
    for key, name, known in [
        ("TEST.PRECISION", cfg.TEST.PRECISION, PRECISIONS),
        ("SOLVER.AMP.PRECISION", cfg.SOLVER.AMP.PRECISION, TRAINING_PRECISIONS),
    ]:
        if name not in known:
            yield f"{key} is '{name}', which is none of {', '.join(known)}.{did_you_mean(name, known)}"


def _model_problems(cfg):
    if not builds_focal_retinanet(cfg):
        return
    default = get_cfg()
    add_retina_config(default)
    default = dict(flatten(default))
    for key, value in flatten(cfg):
        of_rcnn = key.startswith(_RCNN_NODES) or key in _RCNN_SWITCHES
        if of_rcnn and key in default and _as_lists(value) != _as_lists(default[key]):
            twin = f" Did you mean {_TWINS[key]}?" if key in _TWINS else " Remove it."
            yield f"{key} is set to {value}, but belongs to R-CNN and does nothing here.{twin}"

    if cfg.MODEL.RETINANET.NUM_CLASSES < 1:
        yield f"MODEL.RETINANET.NUM_CLASSES is {cfg.MODEL.RETINANET.NUM_CLASSES}; a detector needs at least 1"

    yield from _loss_key_problems(cfg, default)

    used = list(cfg.MODEL.RETINANET.IN_FEATURES)
    if not used:
        yield "MODEL.RETINANET.IN_FEATURES is empty: the head needs at least one level"
    for key in ("SIZES", "ASPECT_RATIOS"):
        lists = cfg.MODEL.ANCHOR_GENERATOR[key]
        if len(lists) not in (1, len(used)):
            yield (
                f"MODEL.ANCHOR_GENERATOR.{key} has {len(lists)} lists for the {len(used)} levels of "
                "MODEL.RETINANET.IN_FEATURES; give one list a level, or one for all"
            )
    backbone = cfg.MODEL.BACKBONE.NAME
    for key in ("MODEL.FPN.TOP_BLOCK_IN_FEATURE", "MODEL.FPN.TOP_BLOCK_RELU", "MODEL.FPN.SIZE_DIVISIBILITY"):
        value = cfg.MODEL.FPN[key.rpartition(".")[2]]
        if backbone == "build_retinanet_resnet_fpn_backbone" and value != default[key]:
            yield (
                f"{key} is {value}, which MODEL.BACKBONE.NAME {backbone} does not read. "
                "Did you mean build_p3p7_resnet_fpn_backbone?"
            )
    if backbone == "build_p3p7_resnet_fpn_backbone":
        made = [f"p{f[3:]}" for f in cfg.MODEL.FPN.IN_FEATURES] + ["p6", "p7"]
        if used and used != made:
            yield (
                f"MODEL.RETINANET.IN_FEATURES is {used}, but the backbone makes {made}: levels that the head "
                "does not use would be computed for nothing, and levels that are not made cannot be used. "
                "Make both lists agree (MODEL.FPN.IN_FEATURES decides where the pyramid starts)"
            )


def _loss_key_problems(cfg, default):
    chosen = cfg.MODEL.RETINANET.CLS_LOSS
    if chosen not in ("focal", "cross_entropy", *itertools.chain(*_LOSS_KEYS.values())):
        return  # somebody else's loss may read any key
    for key, readers in _LOSS_KEYS.items():
        value = cfg.MODEL.RETINANET[key]
        if chosen not in readers and value != default[f"MODEL.RETINANET.{key}"]:
            yield (
                f"MODEL.RETINANET.{key} is set to {value}, but MODEL.RETINANET.CLS_LOSS {chosen} does not read it. "
                f"Did you mean MODEL.RETINANET.CLS_LOSS {readers[0]}?"
            )


def _as_lists(value):
    # YAML has no tuples: the config.yaml of a training has lists where the defaults have tuples within tuples.
    return [_as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def _process_problems(cfg, num_gpus, num_machines, eval_only):
    world_size = num_gpus * num_machines
    if world_size == 1:
        return
    device = cfg.MODEL.DEVICE
    asked = f"--num-gpus {num_gpus}" + (f" --num-machines {num_machines}" if num_machines > 1 else "")
    visible = torch.cuda.device_count()
    if device not in ("cuda", "cpu"):
        hint = ": every process would take that one" if device.startswith("cuda:") else ""
        yield f"{asked} with MODEL.DEVICE {device}{hint}. Set it to cuda (a GPU for each process) or cpu"
    elif device == "cuda" and visible < num_gpus:
        yield (
            f"{asked}: torch {torch.__version__} sees {visible} GPUs on this machine. Ask for as many as there are; "
            f"MODEL.DEVICE cpu runs {num_gpus} processes on the CPU, --num-gpus 1 alone trains on the CPU where there "
            "is no GPU"
        )
    # With a reference, Detectron2 scales the images of a step from its number of processes to ours.
    shares = cfg.SOLVER.REFERENCE_WORLD_SIZE or world_size
    if not eval_only and cfg.SOLVER.IMS_PER_BATCH % shares:
        below = cfg.SOLVER.IMS_PER_BATCH // shares * shares
        yield (
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, the images of all processes together, which "
            f"{shares} processes cannot share equally. Set it to {f'{below} or {below + shares}' if below else shares}"
        )


def _precision_problems(cfg, eval_only):
    if eval_only:
        return
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "fp16" and not (on_gpu and torch.cuda.is_available()):
        yield (
            "SOLVER.AMP.ENABLED with SOLVER.AMP.PRECISION fp16 needs a GPU: Detectron2 scales gradients on CUDA alone. "
            "Set SOLVER.AMP.PRECISION to bf16, which scales none and trains anywhere, or SOLVER.AMP.ENABLED to False"
        )
    if amp.PRECISION == "bf16" and not amp.ENABLED:
        yield (
            "SOLVER.AMP.PRECISION is bf16, but SOLVER.AMP.ENABLED is False, so training would be in fp32. "
            "Set SOLVER.AMP.ENABLED to True, or remove SOLVER.AMP.PRECISION"
        )


def _step_problems(cfg, num_processes, eval_only):
    if eval_only:
        return
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    parts = solver.ACCUMULATE_STEPS
    if parts < 1:
        yield f"SOLVER.ACCUMULATE_STEPS is {parts}; a step has at least 1 part"
    elif parts > 1 and solver.IMS_PER_BATCH % (num_processes * parts):
        processes = f"{num_processes} processes with " if num_processes > 1 else ""
        nearest = -(-solver.IMS_PER_BATCH // (num_processes * parts)) * num_processes * parts
        yield (
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, which {processes}SOLVER.ACCUMULATE_STEPS {parts} do not "
            f"divide evenly. It is the number of images of a whole step: set it to a multiple of "
            f"{num_processes * parts}, such as {nearest}, or change SOLVER.ACCUMULATE_STEPS"
        )
    if solver.MAX_NONFINITE_STEPS < 0:
        yield (
            f"SOLVER.MAX_NONFINITE_STEPS is {solver.MAX_NONFINITE_STEPS}; it is a number of steps, 0 to stop with the "
            "first that is not finite"
        )
    if not clip.ENABLED:
        return
    known = [kind.value for kind in GradientClipType]
    if clip.CLIP_TYPE not in known:
        yield (
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is '{clip.CLIP_TYPE}', which is none of {', '.join(known)}."
            f"{did_you_mean(clip.CLIP_TYPE, known)}"
        )
    if not 0 < clip.CLIP_VALUE < math.inf:
        yield (
            f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {clip.CLIP_VALUE}, with which no gradient passes as it should: it is "
            "a number > 0. grad_norm in the log shows the usual size of a gradient"
        )
    if clip.CLIP_TYPE == "norm" and not clip.NORM_TYPE > 0:
        yield f"SOLVER.CLIP_GRADIENTS.NORM_TYPE is {clip.NORM_TYPE}; the order of a norm is a number > 0, usually 2.0"


def _empty_problems(cfg, eval_only):
    key = "TEST" if eval_only else "TRAIN"
    if not cfg.DATASETS[key]:
        yield f"DATASETS.{key} names no data set"


def _data_problems(names):
    for name in dict.fromkeys(names):
        if name not in DatasetCatalog:
            hint = did_you_mean(name, DatasetCatalog.list())
            yield (
                f"data set '{name}' is not registered.{hint} Register your own with "
                "detectron2.data.datasets.register_coco_instances before training"
            )
            continue
        metadata = MetadataCatalog.get(name)
        for attribute, exists in (("json_file", PathManager.isfile), ("image_root", PathManager.isdir)):
            path = metadata.get(attribute, None)
            if path is not None and not exists(path):
                root = os.environ.get("DETECTRON2_DATASETS", "datasets")
                hint = (
                    f"Detectron2 looks for its built-in sets in $DETECTRON2_DATASETS (now {root}); put it there"
                    if os.path.abspath(path).startswith(os.path.abspath(root) + os.sep)
                    else "Correct the path that it was registered with"
                )
                yield f"data set '{name}' is not on this machine: no {path}. {hint}, or name another set in DATASETS"
                break


def _evaluator_problems(cfg):
    for name in cfg.DATASETS.TEST:
        kind = MetadataCatalog.get(name).get("evaluator_type", "coco") if name in DatasetCatalog else "coco"
        if kind not in BOX_EVALUATOR_TYPES:
            yield (
                f"data set '{name}' of DATASETS.TEST has evaluator type '{kind}', but boxes are judged by "
                f"{', '.join(BOX_EVALUATOR_TYPES)}"
            )


def _class_count_problems(cfg, names):
    if not builds_focal_retinanet(cfg):
        return
    for name in dict.fromkeys(names):
        classes = class_names(name)
        if classes is not None and len(classes) != cfg.MODEL.RETINANET.NUM_CLASSES:
            yield (
                f"MODEL.RETINANET.NUM_CLASSES is {cfg.MODEL.RETINANET.NUM_CLASSES}, but data set '{name}' has "
                f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}). "
                f"Set it to {len(classes)}"
            )
