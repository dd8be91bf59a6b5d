"""Post-processing against a slow restatement in numpy."""

import numpy as np
import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes

from retina_plugin.modeling import Postprocessor

WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def decode(anchor, delta):
    size = anchor[2:] - anchor[:2]
    centre = (anchor[:2] + anchor[2:]) / 2 + delta[:2] * size
    size = size * np.exp(np.minimum(delta[2:], np.log(1000 / 16)))
    return np.concatenate([centre - size / 2, centre + size / 2])


class NearTie(Exception):
    """A comparison that fp32 and float64 may decide differently."""


def exceeds(value, threshold):
    if abs(value - threshold) < 1e-5:
        raise NearTie
    return value > threshold


def detect_slowly(anchors, logits, deltas, score_thresh, topk, nms_thresh, limit):
    candidates = []
    for level_anchors, level_logits, level_deltas in zip(anchors, logits, deltas):
        level = []
        for a, x, d in zip(level_anchors, level_logits, level_deltas):
            for k, score in enumerate(1 / (1 + np.exp(-x))):
                if exceeds(score, score_thresh):
                    level.append((score, k, decode(a, d)))
        candidates += sorted(level, key=lambda c: -c[0])[:topk]
    candidates.sort(key=lambda c: -c[0])
    if any(a[0] - b[0] < 1e-7 for a, b in zip(candidates, candidates[1:])):
        raise NearTie
    kept = []
    for score, k, box in candidates:
        if not any(other == k and exceeds(iou(box, b), nms_thresh) for _, other, b in kept):
            kept.append((score, k, box))
    return kept[:limit]


@pytest.mark.parametrize(
    "settings",
    [
        {"score_thresh": 0.05, "topk": 1000, "nms_thresh": 0.5, "limit": 100},
        {"score_thresh": 0.3, "topk": 20, "nms_thresh": 0.3, "limit": 15},
        {"score_thresh": 0.999, "topk": 10, "nms_thresh": 0.5, "limit": 10},
    ],
)
def test_equals_a_slow_restatement(settings):
    for _ in range(50):
        try:
            return compare_with_slow_restatement(settings)
        except NearTie:
            continue
    raise AssertionError("fifty draws with a near tie")


def compare_with_slow_restatement(settings):
    num_images, num_classes, num_anchors = 2, 3, 2
    cells = [(4, 5), (2, 3)]
    anchors, logits, deltas = [], [], []
    for h, w in cells:
        corner = torch.rand(h * w * num_anchors, 2) * 40
        anchors.append(Boxes(torch.cat([corner, corner + 4 + torch.rand(len(corner), 2) * 20], dim=1)))
        logits.append(torch.randn(num_images, h, w, num_anchors, num_classes) * 2)
        deltas.append(torch.randn(num_images, h, w, num_anchors, 4) * 0.2)
    postprocess = Postprocessor(
        box2box_transform=Box2BoxTransform(weights=WEIGHTS),
        score_thresh=settings["score_thresh"],
        topk_candidates=settings["topk"],
        nms_thresh=settings["nms_thresh"],
        max_detections_per_image=settings["limit"],
    )
    sizes = [(40, 50), (30, 60)]
    for i, detections in enumerate(postprocess(anchors, logits, deltas, sizes)):
        expected = detect_slowly(
            [a.tensor.double().numpy() for a in anchors],
            [x[i].reshape(-1, num_classes).double().numpy() for x in logits],
            [d[i].reshape(-1, 4).double().numpy() for d in deltas],
            **settings,
        )
        assert detections.image_size == sizes[i]
        assert detections.pred_classes.tolist() == [k for _, k, _ in expected]
        assert detections.scores.tolist() == pytest.approx([s for s, _, _ in expected], rel=1e-5)
        expected_boxes = np.array([b for _, _, b in expected]).reshape(-1, 4)
        np.testing.assert_allclose(detections.pred_boxes.tensor.numpy(), expected_boxes, rtol=1e-4, atol=1e-4)
