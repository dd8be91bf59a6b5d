"""The matcher equals a loop over all pairs, and Detectron2's matcher."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou

from retina_plugin import add_retina_config
from retina_plugin.modeling import AnchorMatcher, build_assigner


def random_boxes(count, extent=100.0):
    """Boxes on a coarse grid, so that many overlap alike."""
    corner = torch.randint(0, int(extent), (count, 2)).float()
    return Boxes(torch.cat([corner, corner + torch.randint(1, 40, (count, 2))], dim=1))


def match_pair_by_pair(anchors, gt_boxes, low_quality):
    iou = pairwise_iou(gt_boxes, anchors).tolist()
    best_of_box = [max(row) for row in iou]
    idxs, labels = [], []
    for r in range(len(anchors)):
        column = [row[r] for row in iou]
        best = max(column)
        # 0.4 and 0.5 as float32, in which the IoUs are.
        label = 1 if best >= 0.5 else 0 if best < torch.tensor(0.4).item() else -1
        if low_quality and any(v == b and v > 0 for v, b in zip(column, best_of_box)):
            label = 1
        idxs.append(0 if label == 0 else column.index(best))
        labels.append(label)
    return idxs, labels


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("num_boxes", [1, 5, 40])
def test_equals_a_loop_over_all_pairs(num_boxes, low_quality):
    anchors, gt_boxes = random_boxes(300), random_boxes(num_boxes)
    idxs, labels = AnchorMatcher(num_classes=9, allow_low_quality_matches=low_quality).match(anchors, gt_boxes)
    assert idxs.dtype == torch.int64 and labels.dtype == torch.int8
    expected_idxs, expected_labels = match_pair_by_pair(anchors, gt_boxes, low_quality)
    assert idxs.tolist() == expected_idxs
    assert labels.tolist() == expected_labels


@pytest.mark.parametrize(
    "thresholds, labels", [([0.4, 0.5], [0, -1, 1]), ([0.5], [0, 1]), ([0.1, 0.3, 0.6], [-1, 0, -1, 1])]
)
def test_equals_detectron2_if_every_box_overlaps_an_anchor(thresholds, labels):
    anchors = random_boxes(500)
    # Sides of at least one pixel stay positive, and the anchor below overlaps.
    gt_boxes = Boxes(anchors.tensor[torch.randperm(500)[:30]] + torch.randint(-1, 2, (30, 4)) / 4)
    iou = pairwise_iou(gt_boxes, anchors)
    idxs, match_labels = AnchorMatcher(num_classes=9, thresholds=thresholds, labels=labels).match(anchors, gt_boxes)
    their_idxs, their_labels = Matcher(thresholds, labels, allow_low_quality_matches=True)(iou)
    assert torch.equal(match_labels, their_labels)
    matched = (iou.amax(dim=0) >= thresholds[0]) | (their_labels == 1)
    assert torch.equal(idxs, torch.where(matched, their_idxs, 0))


def test_thresholds_are_inclusive_from_below():
    gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
    anchors = Boxes(torch.tensor([[0.0, 0.0, 10.0, h] for h in (10.0, 5.0, 4.9, 4.0, 3.9)]))
    _, labels = AnchorMatcher(num_classes=9).match(anchors, gt_boxes)
    assert labels.tolist() == [1, 1, -1, -1, 0]


def test_low_quality_matches_with_ties():
    gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 100.0, 100.0]]))
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60], [0.0, 0, 5, 5], [200.0, 0, 210, 10]]))
    assert AnchorMatcher(num_classes=9).match(anchors, gt_boxes)[1].tolist() == [1, 1, 0, 0]
    assert AnchorMatcher(num_classes=9, allow_low_quality_matches=False).match(anchors, gt_boxes)[1].tolist() == [
        0,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(
    "box", [[500.0, 500.0, 510.0, 510.0], [5.0, 5.0, 5.0, 9.0], [9.0, 9.0, 3.0, 3.0], [float("nan")] * 4]
)
def test_a_box_with_zero_iou_to_all_anchors_stays_unmatched(box):
    """Boxes outside all anchors, without area, inverted, or NaN make no anchor positive."""
    anchors = random_boxes(50)
    _, labels = AnchorMatcher(num_classes=9).match(anchors, Boxes(torch.tensor([box])))
    assert (labels == 0).all()


def test_without_boxes_all_anchors_are_background():
    idxs, labels = AnchorMatcher(num_classes=9).match(random_boxes(10), Boxes(torch.zeros(0, 4)))
    assert idxs.tolist() == [0] * 10 and labels.tolist() == [0] * 10


def test_built_from_the_configuration():
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.MODEL.RETINANET.NUM_CLASSES = 7
    cfg.MODEL.RETINANET.IOU_THRESHOLDS, cfg.MODEL.RETINANET.IOU_LABELS = [0.3, 0.6], [-1, 0, 1]
    cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES = False
    anchors = Boxes(torch.tensor([[0.0, 0.0, 10.0, h] for h in (7.0, 5.0, 2.0)]))
    boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
    targets = build_assigner(cfg)([anchors], [Instances((10, 10), gt_boxes=boxes, gt_classes=torch.tensor([4]))])
    assert targets.labels.tolist() == [[4, 7, -1]]
    assert targets.boxes[0, 0].tolist() == [0, 0, 10, 10]


@pytest.mark.parametrize(
    "bad",
    [
        {"thresholds": [0.5, 0.4]},
        {"thresholds": [0.0, 0.5]},
        {"thresholds": [0.4, 1.5]},
        {"thresholds": []},
        {"labels": [0, 1]},
        {"labels": [0, -2, 1]},
        {"labels": [1, -1, 1]},
    ],
)
def test_invalid_settings_are_refused(bad):
    with pytest.raises(ValueError, match="IOU_"):
        AnchorMatcher(num_classes=9, **bad)
