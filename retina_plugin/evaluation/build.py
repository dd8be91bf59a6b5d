"""Which evaluator judges a data set."""

import os

from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator, PascalVOCDetectionEvaluator

from retina_plugin.evaluation.coco import BoxEvaluator


def _lvis(cfg, dataset_name, output_dir):
    return LVISEvaluator(dataset_name, tasks=("bbox",), output_dir=output_dir)


def _pascal_voc(cfg, dataset_name, output_dir):
    return PascalVOCDetectionEvaluator(dataset_name)


_BUILDERS = {"coco": BoxEvaluator, "coco_panoptic_seg": BoxEvaluator, "lvis": _lvis, "pascal_voc": _pascal_voc}
BOX_EVALUATOR_TYPES = tuple(_BUILDERS)


def inference_folder(cfg, dataset_name):
    """Where the results on a test set are written: ``OUTPUT_DIR/inference``, for several sets a folder each in it."""
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return folder if len(cfg.DATASETS.TEST) == 1 else os.path.join(folder, dataset_name)


def build_evaluator(cfg, dataset_name):
    """Build the evaluator of boxes for a data set, by its ``evaluator_type``; without one, as COCO.

    Raises:
        ValueError: the data set's evaluator type does not judge boxes.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    if evaluator_type not in _BUILDERS:
        raise ValueError(
            f"data set '{dataset_name}' has evaluator type '{evaluator_type}'; boxes are judged by "
            f"{', '.join(BOX_EVALUATOR_TYPES)}"
        )
    return _BUILDERS[evaluator_type](cfg, dataset_name, inference_folder(cfg, dataset_name))
