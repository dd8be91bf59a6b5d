"""COCO's box AP, which is 0 without detections, and an explanation of an AP of 0."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from iopath.common.file_io import file_lock
from pycocotools.coco import COCO

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.files import atomic_write_text
from retina_plugin.core.plain import as_python

_EXAMPLES = 4  # images to run the model on again
_SHOWN_AS_ZERO = 5e-4  # tables have three decimals


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation knows.

    Attributes:
        dataset_name: name of the test set.
        class_names: by label; None if they are unknown.
        ground_truth: the annotations of the set.
        image_ids: ids of the evaluated images.
        detections: COCO results, with the category ids of the set.
        examples: some inputs of the model.
    """

    dataset_name: str
    class_names: list[str] | None
    ground_truth: COCO
    image_ids: list[Any]
    detections: list[dict[str, Any]]
    examples: list[dict[str, Any]]


ExplainZeroAP = Callable[[Evaluated], str]


class BoxEvaluator(COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` of boxes, with three differences.

    Without detections, metrics are what COCO's formula gives instead of nan: 0 if there is ground truth. An AP of 0 is
    explained by a warning. Numbers of a data set's dicts may be NumPy's, which are not JSON.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str, output_dir: str, explain_zero_ap: ExplainZeroAP | None = None):
        """
        Args:
            cfg: a configuration with the plugin's keys.
            dataset_name, output_dir: see ``COCOEvaluator``.
            explain_zero_ap: called if AP is 0 or nan; returns the warning.
        """
        counted, given = cfg.TEST.AP_DETECTIONS_PER_IMAGE, cfg.TEST.DETECTIONS_PER_IMAGE
        if "json_file" not in MetadataCatalog.get(dataset_name).as_dict():
            DatasetCatalog.get(dataset_name)  # may set json_file
        if "json_file" not in MetadataCatalog.get(dataset_name).as_dict():
            _write_coco_json(dataset_name, os.path.join(output_dir, f"{dataset_name}_coco_format.json"))
        super().__init__(dataset_name, tasks=("bbox",), output_dir=output_dir, max_dets_per_image=counted)
        self._coco_api.dataset.setdefault("info", {})  # some versions of pycocotools need it to read results
        self._dataset_name = dataset_name
        self._explain_zero_ap = explain_zero_ap
        if given > counted:
            log_first_n(
                logging.WARNING,
                f"TEST.DETECTIONS_PER_IMAGE is {given}, but AP counts the {counted} best detections of an image, as "
                "COCO does. To count all, which no longer compares with published results, set "
                f"TEST.AP_DETECTIONS_PER_IMAGE to {given}.",
                name=__name__,
            )

    def reset(self) -> None:
        super().reset()
        self._examples: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        super().process([{**record, "image_id": as_python(record["image_id"])} for record in inputs], outputs)
        self._examples += inputs[: _EXAMPLES - len(self._examples)]

    # The methods below run on the main rank only, and are the same in Detectron2 0.6 and main.

    def _eval_predictions(self, predictions, img_ids=None):
        self._img_ids = img_ids
        super()._eval_predictions(predictions, img_ids)
        ap = self._results.get("bbox", {}).get("AP")
        if self._explain_zero_ap is None or ap is None or ap > _SHOWN_AS_ZERO:  # nan is not: there is no ground truth
            return
        evaluated = Evaluated(
            dataset_name=self._dataset_name,
            class_names=MetadataCatalog.get(self._dataset_name).get("thing_classes"),
            ground_truth=self._coco_api,
            image_ids=[prediction["image_id"] for prediction in predictions],
            detections=[detection for prediction in predictions for detection in prediction["instances"]],
            examples=self._examples,
        )
        logging.getLogger(__name__).warning(self._explain_zero_ap(evaluated))

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        return super()._derive_coco_results(coco_eval or self._evaluate_nothing(iou_type), iou_type, class_names)

    def _evaluate_nothing(self, iou_type):
        nothing = COCO()
        nothing.dataset = {**self._coco_api.dataset, "annotations": []}
        nothing.createIndex()
        coco_eval = COCOevalMaxDets(self._coco_api, nothing, iou_type)
        coco_eval.params.maxDets = self._max_dets_per_image
        if self._img_ids is not None:
            coco_eval.params.imgIds = self._img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
        return coco_eval


def _write_coco_json(dataset_name: str, path: str) -> None:
    """Write a data set of dicts as a COCO file, as Detectron2's ``COCOEvaluator`` does, unless it is there."""

    def encode(value: Any) -> Any:
        plain = as_python(value)
        if plain is value:
            raise ConfigError(
                [f"data set '{dataset_name}' holds {value!r}, which COCO's evaluation cannot write as JSON"]
            )
        return plain

    PathManager.mkdirs(os.path.dirname(path))
    with file_lock(path):  # other ranks do the same
        if PathManager.exists(path):
            return
        atomic_write_text(path, json.dumps(convert_to_coco_dict(dataset_name), default=encode))
    MetadataCatalog.get(dataset_name).json_file = path
