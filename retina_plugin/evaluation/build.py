"""Builds the evaluator of a data set."""

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, LVISEvaluator, PascalVOCDetectionEvaluator

from retina_plugin.evaluation.coco import BoxEvaluator, ExplainZeroAP

BOX_EVALUATOR_TYPES = ("coco", "coco_panoptic_seg", "lvis", "pascal_voc")


def inference_folder(cfg: CfgNode, dataset_name: str) -> str:
    """The folder for results on a test set: ``OUTPUT_DIR/inference``, with a subfolder for each of several sets."""
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return folder if len(cfg.DATASETS.TEST) == 1 else os.path.join(folder, dataset_name)


def build_evaluator(cfg: CfgNode, dataset_name: str, explain_zero_ap: ExplainZeroAP | None = None) -> DatasetEvaluator:
    """Build the evaluator of boxes for a data set, by its ``evaluator_type``; COCO's if it has none.

    Args:
        cfg: a configuration with the plugin's keys.
        dataset_name: a registered data set.
        explain_zero_ap: see :class:`BoxEvaluator`, the only evaluator that calls it.

    Raises:
        ValueError: the data set's evaluator type does not judge boxes.
    """
    kind, folder = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco"), inference_folder(cfg, dataset_name)
    if kind not in BOX_EVALUATOR_TYPES:
        raise ValueError(
            f"data set '{dataset_name}' has evaluator type '{kind}'; boxes are judged by "
            f"{', '.join(BOX_EVALUATOR_TYPES)}"
        )
    if kind == "lvis":
        return LVISEvaluator(dataset_name, tasks=("bbox",), output_dir=folder)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    return BoxEvaluator(cfg, dataset_name, folder, explain_zero_ap)
