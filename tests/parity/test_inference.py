"""Detections are those of Detectron2's own RetinaNet."""

import numpy as np
import pytest
import torch

from .conftest import NARROW

VARIANTS = {
    "default": (),
    "few candidates": (*NARROW, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", "30"),
    "all candidates, many detections": (
        *NARROW,
        *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.TOPK_CANDIDATES_TEST", "3000"),
        *("TEST.DETECTIONS_PER_IMAGE", "700", "MODEL.RETINANET.NMS_THRESH_TEST", "0.7"),
    ),
    "nothing passes": (*NARROW, "MODEL.RETINANET.SCORE_THRESH_TEST", "1.0"),
}


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_detections(variant, make_pair, make_batch, assert_close):
    ours, theirs = make_pair("Base-RetinaNet.yaml", *VARIANTS[variant])
    batch = make_batch((1, 1, 1))
    our_outputs = [output["instances"] for output in ours.eval()(batch)]
    their_outputs = [output["instances"] for output in theirs.eval()(batch)]
    assert (sum(map(len, their_outputs)) == 0) == (variant == "nothing passes")
    for detections, expected in zip(our_outputs, their_outputs, strict=True):
        assert len(detections) == len(expected)
        assert detections.image_size == expected.image_size
        detections, expected = in_certain_order(detections), in_certain_order(expected)
        assert torch.equal(detections.pred_classes, expected.pred_classes)
        assert_close("scores of detections", detections.scores, expected.scores, 1e-6)
        assert_close("boxes of detections", detections.pred_boxes.tensor, expected.pred_boxes.tensor, 1e-6)


def in_certain_order(detections):
    """By score, and equal scores, which Detectron2 leaves in any order, by class and box."""
    keys = (*detections.pred_boxes.tensor.T, detections.pred_classes, -detections.scores)
    return detections[torch.from_numpy(np.lexsort(keys))]
