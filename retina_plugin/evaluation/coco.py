"""COCO's box AP, which is 0 where nothing was found, and then says why."""

import logging

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.utils.logger import log_first_n
from pycocotools.coco import COCO

from retina_plugin.diagnostics.zero_ap import Evaluated, diagnose

_EXAMPLES = 4  # images to run the model on again
_SHOWN_AS_ZERO = 5e-4  # tables have three decimals


class BoxEvaluator(COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` of boxes, with two differences.

    Without detections, metrics are what COCO's formula gives, not nan: 0 where there is ground truth. Where AP is 0,
    one warning says what is known of the reason (:mod:`~retina_plugin.diagnostics.zero_ap`).

    Attributes:
        model: the detector that is evaluated, for the warning; None if it is not known.
    """

    def __init__(self, cfg, dataset_name, output_dir):
        """
        Args:
            cfg: a configuration with the plugin's keys.
            dataset_name, output_dir: see ``COCOEvaluator``.
        """
        counted, given = cfg.TEST.AP_DETECTIONS_PER_IMAGE, cfg.TEST.DETECTIONS_PER_IMAGE
        super().__init__(dataset_name, tasks=("bbox",), output_dir=output_dir, max_dets_per_image=counted)
        self.model = None
        self._cfg = cfg
        self._dataset_name = dataset_name
        if given > counted:
            log_first_n(
                logging.WARNING,
                f"TEST.DETECTIONS_PER_IMAGE is {given}, but AP counts the {counted} best detections of an image, as "
                "COCO does. To count all, which no longer compares with published results, set "
                f"TEST.AP_DETECTIONS_PER_IMAGE to {given}.",
                name=__name__,
            )

    def reset(self):
        super().reset()
        self._examples = []

    def process(self, inputs, outputs):
        super().process(inputs, outputs)
        self._examples += inputs[: _EXAMPLES - len(self._examples)]

    # What follows runs on the main process alone, and is the same in Detectron2 0.6 and main.

    def _eval_predictions(self, predictions, img_ids=None):
        self._img_ids = img_ids
        super()._eval_predictions(predictions, img_ids)
        ap = self._results.get("bbox", {}).get("AP")
        if ap is None or ap > _SHOWN_AS_ZERO:  # nan, without ground truth, is not
            return
        evaluated = Evaluated(
            dataset_name=self._dataset_name,
            class_names=MetadataCatalog.get(self._dataset_name).get("thing_classes"),
            ground_truth=self._coco_api,
            image_ids=[prediction["image_id"] for prediction in predictions],
            detections=[detection for prediction in predictions for detection in prediction["instances"]],
            examples=self._examples,
        )
        logging.getLogger(__name__).warning(diagnose(self._cfg, evaluated, self.model))

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        if coco_eval is None:
            coco_eval = self._evaluate_nothing(iou_type)
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

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
