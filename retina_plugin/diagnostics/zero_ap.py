"""Why is AP 0? What detections, ground truth, the model's outputs and the configuration say about it."""

import collections
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import get_event_storage
from pycocotools.coco import COCO

from retina_plugin.diagnostics.output_probe import probe

_MOST_IMAGES = 500  # that are looked at more closely
_FOUND = 0.5  # IoU


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation knows.

    Attributes:
        dataset_name: of the test set.
        class_names: by label; None if they are not known.
        ground_truth: pycocotools' ``COCO`` of the set.
        image_ids: of the images that were evaluated.
        detections: list of COCO results, with the set's category ids.
        examples: some of the model's inputs.
    """

    dataset_name: str
    class_names: list
    ground_truth: COCO
    image_ids: list
    detections: list
    examples: list


def diagnose(cfg, evaluated, model=None):
    """Explain an AP that is 0 or nan.

    Args:
        cfg: a configuration.
        evaluated: an :class:`Evaluated`.
        model: the detector, which is run again on the examples; None: what it says is left out.

    Returns:
        str: lines of text.
    """
    boxes = [a for a in evaluated.ground_truth.anns.values() if not a.get("iscrowd", 0)]
    found = "no detection" if not evaluated.detections else f"{len(evaluated.detections)} detections"
    head = (
        f"AP on '{evaluated.dataset_name}' is {'0' if boxes else 'nan'}, with {found} in "
        f"{len(set(evaluated.image_ids))} images that have {len(boxes)} boxes."
    )
    if not boxes:
        return f"{head} Without ground truth there is no AP. Was the right annotation file registered?"
    model = getattr(model, "module", model)
    lines = [
        *(_about_outputs(cfg, model, evaluated.examples, len(evaluated.detections)) if model is not None else ()),
        *(_about_detections(evaluated, boxes) if evaluated.detections else ()),
        _about_training(cfg),
        *_about_classes(cfg, evaluated),
    ]
    return "\n".join([f"{head} What is known:", *(f"  - {line}" for line in lines)])


def _about_outputs(cfg, model, examples, num_detections):
    broken = [name for name, value in itertools.chain(model.named_parameters(), model.named_buffers()) if (
        value.is_floating_point() and not torch.isfinite(value).all()
    )]  # fmt: skip
    if broken:
        yield (
            f"{len(broken)} weights are not finite, such as {broken[0]}: the training diverged (lower SOLVER.BASE_LR, "
            "SOLVER.CLIP_GRADIENTS), or the file is damaged"
        )
    outputs = probe(model, examples)
    if outputs is None:
        return
    if outputs.not_finite > 0:
        half = not broken and cfg.TEST.PRECISION != "fp32"
        yield (
            f"{outputs.not_finite:.0%} of the outputs for {len(examples)} images are NaN or infinite, and a score that "
            "is NaN is no detection"
            + (f". They are computed in TEST.PRECISION {cfg.TEST.PRECISION}: try fp32" if half else "")
        )
    if num_detections or outputs.highest is None:
        return
    threshold, prior = cfg.MODEL.RETINANET.SCORE_THRESH_TEST, cfg.MODEL.RETINANET.PRIOR_PROB
    if outputs.highest <= threshold:
        yield (
            f"the highest score in {len(examples)} images is {outputs.highest:.2g}, and only what is above "
            f"MODEL.RETINANET.SCORE_THRESH_TEST {threshold:g} is a detection"
        )
    else:
        yield (
            f"there are scores up to {outputs.highest:.2g}, above MODEL.RETINANET.SCORE_THRESH_TEST {threshold:g}, but "
            "their boxes are empty or outside of the image, or TEST.DETECTIONS_PER_IMAGE "
            f"({cfg.TEST.DETECTIONS_PER_IMAGE}) or MODEL.RETINANET.TOPK_CANDIDATES_TEST "
            f"({cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST}) leaves none"
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
            "MODEL.RETINANET.IOU_THRESHOLDS) teach nothing"
        )


def _about_detections(evaluated, boxes):
    name_of = {k: c.get("name", k) for k, c in evaluated.ground_truth.cats.items()}
    scores = [d["score"] for d in evaluated.detections]
    yield f"the highest score of a detection is {max(scores):.2g}"

    detected = {d["category_id"] for d in evaluated.detections}
    wanted = {a["category_id"] for a in boxes}
    if len(detected) == 1 and len(wanted) > 1:
        yield f"all detections are of class '{name_of[detected.pop()]}', while the boxes have {len(wanted)} classes"
    elif not detected & wanted:
        yield (
            f"no box has a class that was detected: boxes have {_some(name_of[k] for k in wanted)}, detections "
            f"{_some(name_of[k] for k in detected)}"
        )

    best_ious, confused = _compare(evaluated, boxes)
    share = confused.total() / len(best_ious)
    if share >= 0.1:
        (one, other), _ = confused.most_common(1)[0]
        yield (
            f"{share:.0%} of the boxes are found with an IoU of {_FOUND:g} or more, but as another class (most often "
            f"'{name_of[one]}' as '{name_of[other]}'): do the category ids, or the order of the classes, differ from "
            "those that the model was trained with?"
        )
    else:
        yield f"the best IoU of a box with a detection of whatever class is {np.median(best_ious):.2f} in the median"
        yield from _about_places(evaluated, boxes)


def _compare(evaluated, boxes):
    """For each box of some images its best IoU with a detection; and (class, detected class) where these differ."""
    detections = _by_image(evaluated.detections)
    best_ious, confused = [], collections.Counter()
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
    return np.array(best_ious), confused


def _about_places(evaluated, boxes):
    size_of = {k: (image["width"], image["height"]) for k, image in evaluated.ground_truth.imgs.items()}
    far_boxes, far_detections = _reach(boxes, size_of), _reach(evaluated.detections, size_of)
    if not 0.67 < far_detections / far_boxes < 1.5:
        yield (
            f"boxes reach {far_boxes:.0%} of the way to the far sides of their images, detections "
            f"{far_detections:.0%}: do width and height in the annotations belong to other versions of the images?"
        )
    area = [np.median([a["bbox"][2] * a["bbox"][3] for a in some]) for some in (boxes, evaluated.detections)]
    if not 0.1 < area[1] / max(area[0], 1e-9) < 10:
        yield (
            f"boxes are {area[0]:.0f} pixels large, detections {area[1]:.0f} (medians): are the anchors "
            "(MODEL.ANCHOR_GENERATOR.SIZES) those of the weights?"
        )


def _reach(items, size_of):
    """How far right and down items of COCO come, as a share of the image: what 95 % of them stay below."""
    ends = [(x + w, y + h, *size_of[item["image_id"]]) for item in items for x, y, w, h in [item["bbox"]]]
    right, bottom, width, height = np.array(ends, dtype=float).T
    return np.percentile(np.maximum(right / width, bottom / height), 95)


def _about_training(cfg):
    try:
        iteration = get_event_storage().iter
    except AssertionError:  # no training is running
        return f"the weights are those of {cfg.MODEL.WEIGHTS}" if cfg.MODEL.WEIGHTS else "MODEL.WEIGHTS is empty"
    begun = f"'{cfg.MODEL.WEIGHTS}'" if cfg.MODEL.WEIGHTS else "random weights"
    warmup = f", the first {cfg.SOLVER.WARMUP_ITERS} at a low rate" if iteration < 2 * cfg.SOLVER.WARMUP_ITERS else ""
    return f"the training began from {begun} and is in iteration {iteration} of {cfg.SOLVER.MAX_ITER}{warmup}"


def _about_classes(cfg, evaluated):
    names, count = evaluated.class_names, cfg.MODEL.RETINANET.NUM_CLASSES
    if names is not None and len(names) != count:
        yield f"the model has {count} classes (MODEL.RETINANET.NUM_CLASSES), the set {len(names)}"


def _by_image(items):
    images = collections.defaultdict(list)
    for item in items:
        images[item["image_id"]].append(item)
    return images


def _boxes(items):
    boxes = torch.tensor([item["bbox"] for item in items], dtype=torch.float64)
    return Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).float())


def _some(names):
    names = sorted(map(str, names))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
