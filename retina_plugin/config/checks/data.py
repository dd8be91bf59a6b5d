"""Whether the data sets are there, and their classes those of the model."""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from retina_plugin.config.checks.model import builds_focal_retinanet
from retina_plugin.core.text import did_you_mean
from retina_plugin.data.class_names import class_names
from retina_plugin.evaluation.build import BOX_EVALUATOR_TYPES


def empty_problems(cfg, eval_only):
    key = "TEST" if eval_only else "TRAIN"
    if not cfg.DATASETS[key]:
        yield f"DATASETS.{key} names no data set"


def data_problems(names):
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


def evaluator_problems(cfg):
    for name in cfg.DATASETS.TEST:
        kind = MetadataCatalog.get(name).get("evaluator_type", "coco") if name in DatasetCatalog else "coco"
        if kind not in BOX_EVALUATOR_TYPES:
            yield (
                f"data set '{name}' of DATASETS.TEST has evaluator type '{kind}', but boxes are judged by "
                f"{', '.join(BOX_EVALUATOR_TYPES)}"
            )


def class_count_problems(cfg, names):
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
