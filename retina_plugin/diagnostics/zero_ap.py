"""Explains an AP of 0 from detections, ground truth, the model's outputs and the configuration."""

import collections
import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import nn

from retina_plugin.evaluation.coco import Evaluated

_MOST_IMAGES = 500  # that are looked at more closely
_FOUND = 0.5  # IoU

Annotations = list[dict[str, Any]]


class _Outputs(NamedTuple):
    """Statistics of a detector's outputs for some images; those of scores and logits are of finite ones."""

    not_finite: float  # share of logits and deltas
    num_scores: int = 0
    highest: float = 0.0  # score
    mean: float = 0.0  # score
    spread: float = 0.0  # of logits


def explain_zero_ap(cfg: CfgNode, model: nn.Module, evaluated: Evaluated) -> str:
    """Explain an AP that is 0 or nan, in several lines.

    Args:
        cfg: a configuration with the plugin's keys.
        model: the evaluated detector. With ``raw_predictions``, as in ``FocalRetinaNet``, it is run again on the
            examples, and its outputs are part of the explanation.
        evaluated: what the evaluation knows.
    """
    boxes = [a for a in evaluated.ground_truth.anns.values() if not a.get("iscrowd", 0)]
    found = "no detection" if not evaluated.detections else f"{len(evaluated.detections)} detections"
    head = (
        f"AP on '{evaluated.dataset_name}' is {'0' if boxes else 'nan'}, with {found} in "
        f"{len(set(evaluated.image_ids))} images that have {len(boxes)} boxes."
    )
    if not boxes:
        return f"{head} Without ground truth there is no AP. Was the right annotation file registered?"
    lines = [
        *_about_model(cfg, getattr(model, "module", model), evaluated),
        *(_about_detections(evaluated, boxes) if evaluated.detections else ()),
        _about_training(cfg),
    ]
    names, count = evaluated.class_names, cfg.MODEL.RETINANET.NUM_CLASSES
    if names is not None and len(names) != count:
        lines.append(f"the model has {count} classes (MODEL.RETINANET.NUM_CLASSES), the set {len(names)}")
    return "\n".join([f"{head} What is known:", *(f"  - {line}" for line in lines)])


def _about_model(cfg: CfgNode, model: nn.Module, evaluated: Evaluated) -> Iterator[str]:
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    broken = [name for name, value in tensors if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        yield (
            f"{len(broken)} weights are not finite, such as {broken[0]}: the training diverged (lower SOLVER.BASE_LR, "
            "SOLVER.CLIP_GRADIENTS), or the file is damaged"
        )
    outputs = _run_again(model, evaluated.examples)
    if outputs is None:
        return
    if outputs.not_finite > 0:
        half = not broken and cfg.TEST.PRECISION != "fp32"
        yield (
            f"{outputs.not_finite:.0%} of the outputs for {len(evaluated.examples)} images are NaN or infinite, and a "
            "score that is NaN is no detection"
            + (f". They are computed in TEST.PRECISION {cfg.TEST.PRECISION}: try fp32" if half else "")
        )
    if outputs.num_scores and not evaluated.detections:
        yield from _about_scores(cfg, outputs, len(evaluated.examples))


@torch.no_grad()
def _run_again(model: nn.Module, images: list[dict[str, Any]]) -> _Outputs | None:
    """Run a detector on images; None if it does not tell its outputs, or fails."""
    raw_predictions: Any = getattr(model, "raw_predictions", None)
    if raw_predictions is None or not images:
        return None
    num_outputs = num_finite = num_scores = 0
    total, lowest, highest = 0.0, np.inf, -np.inf
    try:
        with inference_context(model):
            for image in images:
                raw = raw_predictions([image])
                for level in (*raw.logits, *raw.deltas):
                    num_outputs, num_finite = num_outputs + level.numel(), num_finite + int(level.isfinite().sum())
                for finite in (level[level.isfinite()].float() for level in raw.logits):
                    if len(finite):
                        num_scores, total = num_scores + len(finite), total + finite.sigmoid().double().sum().item()
                        lowest, highest = min(lowest, finite.min().item()), max(highest, finite.max().item())
    except Exception:  # an explanation must not make an evaluation fail
        logging.getLogger(__name__).debug("The model does not run again on its inputs", exc_info=True)
        return None
    not_finite = 1 - num_finite / num_outputs
    if not num_scores:
        return _Outputs(not_finite)
    return _Outputs(not_finite, num_scores, float(1 / (1 + np.exp(-highest))), total / num_scores, highest - lowest)


def _about_scores(cfg: CfgNode, outputs: _Outputs, num_images: int) -> Iterator[str]:
    retinanet, prior = cfg.MODEL.RETINANET, cfg.MODEL.RETINANET.PRIOR_PROB
    threshold = f"MODEL.RETINANET.SCORE_THRESH_TEST {retinanet.SCORE_THRESH_TEST:g}"
    if outputs.highest <= retinanet.SCORE_THRESH_TEST:
        yield (
            f"the highest score in {num_images} images is {outputs.highest:.2g}, and only what is above {threshold} is "
            "a detection"
        )
    else:
        yield (
            f"there are scores up to {outputs.highest:.2g}, above {threshold}, but their boxes are empty or outside of "
            f"the image, or TEST.DETECTIONS_PER_IMAGE ({cfg.TEST.DETECTIONS_PER_IMAGE}) or "
            f"MODEL.RETINANET.TOPK_CANDIDATES_TEST ({retinanet.TOPK_CANDIDATES_TEST}) leaves none"
        )
    if prior / 2 < outputs.mean < 2 * prior and outputs.highest < 5 * prior:
        yield (
            f"scores are still where the initialization puts them, at MODEL.RETINANET.PRIOR_PROB {prior:g}: the class "
            "head has learned nothing yet, or no weights were loaded into it"
        )
    elif outputs.spread < 1e-3:
        yield (
            "all scores are the same: the outputs do not depend on the image (activations that are all zero? "
            "MODEL.PIXEL_MEAN and PIXEL_STD? statistics of the norm layers?)"
        )
    elif outputs.highest < prior / 2:
        yield (
            f"scores have fallen below where they began (MODEL.RETINANET.PRIOR_PROB {prior:g}): training finds only "
            "background. Look at the positives in its log: anchors that match no box (MODEL.ANCHOR_GENERATOR.SIZES, "
            "MODEL.RETINANET.IOU_THRESHOLDS) teach nothing (`python -m retina_plugin anchors check` says which boxes)"
        )


def _about_detections(evaluated: Evaluated, boxes: Annotations) -> Iterator[str]:
    name_of = {k: c.get("name", k) for k, c in evaluated.ground_truth.cats.items()}
    yield f"the highest score of a detection is {max(d['score'] for d in evaluated.detections):.2g}"
    detected, wanted = ({item["category_id"] for item in items} for items in (evaluated.detections, boxes))
    if len(detected) == 1 and len(wanted) > 1:
        yield f"all detections are of class '{name_of[min(detected)]}', while the boxes have {len(wanted)} classes"
    elif not detected & wanted:
        names = [_some(name_of[k] for k in classes) for classes in (wanted, detected)]
        yield f"no box has a class that was detected: boxes have {names[0]}, detections {names[1]}"
    best_ious, confused = _compare(evaluated, boxes)
    share = confused.total() / len(best_ious)
    if share >= 0.1:
        (one, other), _ = confused.most_common(1)[0]
        yield (
            f"{share:.0%} of the boxes are found with an IoU of {_FOUND:g} or more, but as another class (most often "
            f"'{name_of[one]}' as '{name_of[other]}'): do the category ids, or the order of the classes, differ from "
            "those that the model was trained with?"
        )
        return
    yield f"the best IoU of a box with a detection of whatever class is {np.median(best_ious):.2f} in the median"
    size_of = {k: (image["width"], image["height"]) for k, image in evaluated.ground_truth.imgs.items()}
    reach = [_reach(items, size_of) for items in (boxes, evaluated.detections)]
    if not 0.67 < reach[1] / reach[0] < 1.5:
        yield (
            f"boxes reach {reach[0]:.0%} of the way to the far sides of their images, detections {reach[1]:.0%}: do "
            "width and height in the annotations belong to other versions of the images?"
        )
    area = [np.median([a["bbox"][2] * a["bbox"][3] for a in items]) for items in (boxes, evaluated.detections)]
    if not 0.1 < area[1] / max(area[0], 1e-9) < 10:
        yield (
            f"boxes are {area[0]:.0f} pixels large, detections {area[1]:.0f} (medians): are the anchors "
            "(MODEL.ANCHOR_GENERATOR.SIZES) those of the weights?"
        )


def _compare(evaluated: Evaluated, boxes: Annotations) -> tuple[list[float], collections.Counter]:
    """For each box of some images its best IoU with a detection; and counts of (class, detected class) that differ."""
    detections = _by_image(evaluated.detections)
    best_ious: list[float] = []
    confused: collections.Counter = collections.Counter()
    for image_id, annotations in itertools.islice(_by_image(boxes).items(), _MOST_IMAGES):
        found = detections.get(image_id, [])
        if not found:
            best_ious += [0.0] * len(annotations)
            continue
        iou, index = pairwise_iou(_boxes(annotations), _boxes(found)).max(dim=1)
        best_ious += iou.tolist()
        for annotation, value, i in zip(annotations, iou.tolist(), index.tolist()):
            classes = annotation["category_id"], found[i]["category_id"]
            confused[classes] += value >= _FOUND and classes[0] != classes[1]
    return best_ious, confused


def _reach(items: Annotations, size_of: dict[Any, tuple[int, int]]) -> float:
    """How far right and down boxes come, as a share of the image: the 95th percentile."""
    ends = [(x + w, y + h, *size_of[item["image_id"]]) for item in items for x, y, w, h in [item["bbox"]]]
    right, bottom, width, height = np.array(ends, dtype=float).T
    return float(np.percentile(np.maximum(right / width, bottom / height), 95))


def _about_training(cfg: CfgNode) -> str:
    try:
        iteration = get_event_storage().iter
    except AssertionError:  # no training is running
        return f"the weights are those of {cfg.MODEL.WEIGHTS}" if cfg.MODEL.WEIGHTS else "MODEL.WEIGHTS is empty"
    begun = f"'{cfg.MODEL.WEIGHTS}'" if cfg.MODEL.WEIGHTS else "random weights"
    warmup = f", the first {cfg.SOLVER.WARMUP_ITERS} at a low rate" if iteration < 2 * cfg.SOLVER.WARMUP_ITERS else ""
    return f"the training began from {begun} and is in iteration {iteration} of {cfg.SOLVER.MAX_ITER}{warmup}"


def _by_image(items: Annotations) -> dict[Any, Annotations]:
    images = collections.defaultdict(list)
    for item in items:
        images[item["image_id"]].append(item)
    return images


def _boxes(items: Annotations) -> Boxes:
    boxes = torch.tensor([item["bbox"] for item in items], dtype=torch.float64)
    return Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).float())


def _some(names: Iterable[object]) -> str:
    names = sorted(map(str, names))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
