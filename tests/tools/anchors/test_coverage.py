"""Counts of positive anchors and groups of boxes, worked out by Detectron2's IoU of all pairs."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou

from retina_plugin.modeling.anchor_coverage import AnchorCoverage
from retina_plugin.tools.anchors.coverage import count_positives, measure_coverage

from ...engine.small import make_cfg, make_image
from .sets import random_boxes

NAMES = ["a", "b", "c"]


def make_records(rng, number):
    records = []
    for i in range(number):
        boxes = random_boxes(rng, 5, np.exp(rng.uniform(1.5, 4.5, 5)), np.exp(rng.normal(0, 0.8)))
        annotations = [{"bbox": b.tolist(), "bbox_mode": 1, "category_id": k % 3} for k, b in enumerate(boxes)]
        records.append({"file_name": f"{i}.png", "width": 128, "height": 128, "annotations": annotations})
    return records


@pytest.mark.parametrize("low_quality", [True, False])
def test_positives_are_those_of_the_paper(seed, low_quality):
    coverage = AnchorCoverage(make_cfg("MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES", low_quality))
    instances = make_image(seed, 0, 8, (96, 96))["instances"]
    instances.gt_boxes.tensor[7] = instances.gt_boxes.tensor[2]  # the same box again gets none
    anchors, _ = coverage.assign(instances)
    iou = pairwise_iou(instances.gt_boxes, Boxes.cat(anchors))
    best, box = iou.max(dim=0)
    is_positive = best >= 0.5
    if low_quality:
        is_positive |= ((iou == iou.amax(dim=1, keepdim=True)) & (iou > 0)).any(dim=0)
    ends = np.cumsum([0, *map(len, anchors)])
    expected = [
        [int((is_positive & (box == b))[start:end].sum()) for start, end in zip(ends, ends[1:])] for b in range(8)
    ]
    counts = count_positives(coverage, instances)
    assert counts.tolist() == expected and counts[7].sum() == 0 and counts.sum() > 0


def test_rows_are_shares_of_their_boxes(seed):
    cfg = make_cfg("INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.RANDOM_FLIP", "none")
    records = make_records(np.random.default_rng(seed), 12)
    coverage = measure_coverage(cfg, records, NAMES)
    anchors, _ = AnchorCoverage(cfg).assign(make_image(seed, 0, 1, (128, 128))["instances"])
    boxes = torch.tensor([a["bbox"] for r in records for a in r["annotations"]])
    boxes[:, 2:] += boxes[:, :2]
    iou = pairwise_iou(Boxes(boxes.float()), Boxes.cat(anchors)).amax(dim=1).numpy()
    np.testing.assert_allclose(coverage.iou, iou, rtol=1e-4)
    rows = list(coverage.rows())
    assert rows[0].boxes == 60 and rows[0].missed == pytest.approx((iou < 0.5).mean())
    for group in ("size", "level", "height / width", "class"):
        members = [row for row in rows if row.group == group]
        assert sum(row.boxes for row in members) == 60
        assert sum(row.boxes * row.missed for row in members) == pytest.approx((iou < 0.5).sum())
    sides = (boxes[:, 2:] - boxes[:, :2]).numpy()
    by_name = {(row.group, row.name): row for row in rows}
    small = sides.prod(axis=1) < 1024
    assert by_name["size", "small (< 32 x 32)"].mean_iou == pytest.approx(iou[small].mean(), rel=1e-4)
    wide = sides[:, 1] / sides[:, 0] < 1 / 3
    assert ("height / width", "< 1/3") in by_name if wide.any() else ("height / width", "< 1/3") not in by_name
    assert by_name["class", "b"].boxes == 24  # the second and the fifth box of each image


def test_an_assigner_that_needs_predictions_is_not_asked(seed):
    cfg = make_cfg("INPUT.MIN_SIZE_TRAIN", (0,))
    coverage = AnchorCoverage(cfg)
    assert coverage.assigns_before_forward
    coverage._assigner.needs_predictions = True
    assert not coverage.assigns_before_forward
