"""Post-processing equals a slow implementation in numpy, and bit for bit a plain implementation in torch."""

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retina_plugin.modeling import DeltaXYWHCoder, Postprocessor
from retina_plugin.modeling.head import per_anchor
from retina_plugin.modeling.inference import candidates

WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def decode(anchor, delta):
    size = anchor[2:] - anchor[:2]
    center = (anchor[:2] + anchor[2:]) / 2 + delta[:2] * size
    size = size * np.exp(np.minimum(delta[2:], np.log(1000 / 16)))
    return np.concatenate([center - size / 2, center + size / 2])


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
def test_equals_a_slow_implementation(settings):
    for _ in range(50):
        try:
            return compare_with_slow_implementation(settings)
        except NearTie:
            continue
    raise AssertionError("fifty draws with a near tie")


def compare_with_slow_implementation(settings):
    num_images, num_classes, num_anchors = 2, 3, 2
    cells = [(4, 5), (2, 3)]
    anchors, logits, deltas = [], [], []
    for h, w in cells:
        corner = torch.rand(h * w * num_anchors, 2) * 40
        anchors.append(Boxes(torch.cat([corner, corner + 4 + torch.rand(len(corner), 2) * 20], dim=1)))
        logits.append(torch.randn(num_images, h, w, num_anchors, num_classes) * 2)
        deltas.append(torch.randn(num_images, h, w, num_anchors, 4) * 0.2)
    postprocess = Postprocessor(
        box_coder=DeltaXYWHCoder(WEIGHTS),
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


MEMORY_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def make_predictions(cells, memory_format, num_images=2, num_anchors=3, num_classes=20, dtype=torch.float32):
    """Anchors, logits and deltas of levels of ``cells``; the latter two are views of what a head gives."""
    anchors, logits, deltas = [], [], []
    for h, w in cells:
        corner = torch.rand(h * w * num_anchors, 2) * 100
        anchors.append(Boxes(torch.cat([corner, corner + 4 + torch.rand(len(corner), 2) * 50], dim=1)))
        for predictions, dim, scale in ((logits, num_classes, 2), (deltas, 4, 0.2)):
            x = (torch.randn(num_images, num_anchors * dim, h, w) * scale).to(dtype)
            predictions.append(per_anchor(x.contiguous(memory_format=memory_format), dim))
    return anchors, logits, deltas


def detect_plainly(anchors, logits, deltas, score_thresh, topk, nms_thresh, limit):
    """Detect in one image: score and sort every logit, decode boxes from copies in the order of the anchors."""
    all_scores, all_classes, all_deltas, all_anchors = [], [], [], []
    for level_anchors, level_logits, level_deltas in zip(anchors, logits, deltas, strict=True):
        scores = level_logits.flatten(0, 2).to(torch.promote_types(level_logits.dtype, torch.float32)).sigmoid()
        anchor_idxs, classes = (scores > score_thresh).nonzero(as_tuple=True)
        scores, order = scores[anchor_idxs, classes].sort(descending=True, stable=True)
        all_scores.append(scores[:topk])
        all_classes.append(classes[order[:topk]])
        all_deltas.append(level_deltas.flatten(0, 2)[anchor_idxs[order[:topk]]].float())
        all_anchors.append(level_anchors.tensor[anchor_idxs[order[:topk]]])
    scores, classes = torch.cat(all_scores).float(), torch.cat(all_classes)
    boxes = Box2BoxTransform(weights=WEIGHTS).apply_deltas(torch.cat(all_deltas), torch.cat(all_anchors))
    keep = batched_nms(boxes, scores, classes, nms_thresh)[:limit]
    return boxes[keep], scores[keep], classes[keep]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize(("topk", "score_thresh"), [(60, 0.0), (10**5, 0.05), (60, 0.9), (60, 1.0)])
def test_equals_the_plain_implementation_bit_for_bit(topk, score_thresh, memory_format, dtype):
    # Levels of whole vector registers, too small for a second thread, so that every score is rounded alike.
    cells = [(8, 16), (8, 8), (4, 4)]
    anchors, logits, deltas = make_predictions(cells, MEMORY_FORMATS[memory_format], dtype=dtype)
    postprocess = Postprocessor(
        box_coder=DeltaXYWHCoder(WEIGHTS),
        score_thresh=score_thresh,
        topk_candidates=topk,
        nms_thresh=0.5,
        max_detections_per_image=300,
    )
    found = postprocess(anchors, logits, deltas, [(100, 150), (90, 120)])
    for i, detections in enumerate(found):
        boxes, scores, classes = detect_plainly(
            anchors, [x[i] for x in logits], [d[i] for d in deltas], score_thresh, topk, nms_thresh=0.5, limit=300
        )
        assert (len(scores) == 0) == (score_thresh == 1.0)
        assert detections.pred_boxes.tensor.dtype == detections.scores.dtype == torch.float32
        assert torch.equal(detections.scores, scores)
        assert torch.equal(detections.pred_classes, classes)
        assert torch.equal(detections.pred_boxes.tensor, boxes)


class LargestAllocation(TorchDispatchMode):
    """Records the bytes of the largest storage that an operation allocates."""

    def __init__(self, *inputs):
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in inputs}
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for x in tree_leaves(outputs):
            if torch.is_tensor(x) and x.untyped_storage().data_ptr() not in self.known:
                self.nbytes = max(self.nbytes, x.untyped_storage().nbytes())
        return outputs


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("score_thresh", [0.0, 0.05])
def test_allocates_no_tensor_of_the_size_of_the_logits(score_thresh, memory_format):
    anchors, logits, deltas = make_predictions([(64, 96)], MEMORY_FORMATS[memory_format], num_images=1)
    postprocess = Postprocessor(box_coder=DeltaXYWHCoder(WEIGHTS), score_thresh=score_thresh, topk_candidates=100)
    with LargestAllocation(*logits, *deltas) as largest:
        postprocess(anchors, logits, deltas, [(100, 150)])
    assert 0 < largest.nbytes < min(logits[0].numel(), deltas[0].nbytes)  # not even one byte a logit


def test_allocates_no_tensor_of_the_size_of_the_logits_where_all_are_equal(monkeypatch):
    monkeypatch.setattr(candidates, "SEARCHED_AT_ONCE", 2**12)
    anchors, logits, deltas = make_predictions([(64, 96)], torch.contiguous_format, num_images=1)
    logits[0].fill_(0.5)
    postprocess = Postprocessor(box_coder=DeltaXYWHCoder(WEIGHTS), topk_candidates=100)
    with LargestAllocation(*logits, *deltas) as largest:
        postprocess(anchors, logits, deltas, [(100, 150)])
    assert 0 < largest.nbytes < logits[0].numel()


@pytest.mark.parametrize("clip_before_nms, kept", [(False, [0, 1]), (True, [0])])
def test_boxes_that_overlap_only_within_the_image(clip_before_nms, kept):
    """Clipped at x = 100, both boxes are equal; unclipped, their IoU is 40 / 180."""
    boxes = torch.tensor([[60.0, 0.0, 100.0, 100.0], [60.0, 0.0, 240.0, 100.0]])
    postprocess = Postprocessor(box_coder=DeltaXYWHCoder(WEIGHTS), clip_before_nms=clip_before_nms, nms_thresh=0.5)
    logits = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2, 1)
    (found,) = postprocess([Boxes(boxes)], [logits], [torch.zeros(1, 1, 1, 2, 4)], [(100, 100)])
    assert torch.equal(found.scores, logits.flatten().sigmoid()[kept])
    expected = boxes.clamp(max=100) if clip_before_nms else boxes
    assert torch.equal(found.pred_boxes.tensor, expected[kept])
