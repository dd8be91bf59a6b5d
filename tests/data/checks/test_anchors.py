"""The best IoU with any anchor equals that of all anchors, one by one."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from PIL import Image

from retina_plugin.data.checks.anchors import resize_boxes
from retina_plugin.data.checks.entries import Table
from retina_plugin.modeling.anchor_coverage import AnchorCoverage

from .sets import places

STRIDES = (8, 16, 32, 64, 128)


def _random_boxes(rng, number, sizes):
    """Boxes of 1 pixel to the whole image, thin ones too, some over the border."""
    sides = np.exp(rng.uniform(0, np.log(sizes)))
    corner = rng.uniform(-0.05, 1, (number, 2)) * (sizes - sides)
    return np.concatenate([corner, sides], axis=1)


def resized(cfg, boxes, sizes, short_edge):
    return resize_boxes(cfg, Table([{}] * len(boxes), [], boxes, sizes, np.zeros(len(boxes), dtype=bool)), short_edge)


def _brute_force(cfg, boxes, sizes, short_edge):
    """By Detectron2's own anchors of the padded image, and its IoU with each of them."""
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=stride) for stride in STRIDES])
    for box, (width, height) in zip(boxes, sizes.astype(int)):
        if short_edge:
            new = ResizeShortestEdge.get_output_shape(height, width, short_edge, cfg.INPUT.MAX_SIZE_TRAIN)
        else:
            new = height, width
        corners = np.array(BoxMode.convert(box.tolist(), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
        corners = corners * ([new[1] / width, new[0] / height] * 2)
        box = Boxes(torch.tensor(corners[None].clip(0)).float())
        box.clip(new)
        cells = [[-(-(-(-side // 32) * 32) // stride) for side in new] for stride in STRIDES]
        anchors = Boxes.cat(generator([torch.empty(1, 1, *cell) for cell in cells]))
        yield pairwise_iou(box, anchors).max().item()


@pytest.mark.parametrize(
    "generator", ["DefaultAnchorGenerator", "TorchvisionAnchorGenerator", "DetectronAnchorGenerator"]
)
def test_best_iou_is_that_of_all_anchors(generator, cfg, random_set):
    rng = random_set.rng
    cfg.MODEL.ANCHOR_GENERATOR.NAME = generator
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5 if generator == "DetectronAnchorGenerator" else 0.0
    sizes = rng.integers(40, 300, (120, 2)).astype(np.float64)
    boxes = _random_boxes(rng, 120, sizes)
    coverage = AnchorCoverage(cfg)
    for short_edge in (0, int(rng.integers(100, 400))):
        ious, _ = coverage.best(*resized(cfg, boxes, sizes, short_edge))
        expected = np.array(list(_brute_force(cfg, boxes, sizes, short_edge)), dtype=np.float32)
        below = expected < coverage.threshold
        assert 10 < below.sum() < 110
        assert ((ious < coverage.threshold) == below).all()
        np.testing.assert_array_equal(ious[below], expected[below])
        np.testing.assert_allclose(ious, expected, rtol=1e-5)


def test_anchors_that_are_no_grid_give_the_same(cfg, random_set, monkeypatch):
    sizes = random_set.rng.integers(40, 300, (70, 2)).astype(np.float64)
    boxes = _random_boxes(random_set.rng, 70, sizes)
    coverage = AnchorCoverage(cfg)
    at_size = resized(cfg, boxes, sizes, 120)
    ious, levels = coverage.best(*at_size)
    monkeypatch.delattr(type(coverage._generator), "num_cell_anchors")
    all_pairs, same_levels = coverage.best(*at_size)
    np.testing.assert_allclose(ious, all_pairs, rtol=1e-5)
    assert (levels == same_levels).mean() > 0.9  # equally good anchors may be of two levels


def test_boxes_at_training_size_are_those_of_detectron2s_mapper(cfg, random_set, tmp_path):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (157,), "none"
    width, height = random_set.rng.integers(60, 200, 2).tolist()
    Image.new("RGB", (width, height)).save(tmp_path / "a.png")
    boxes = _random_boxes(random_set.rng, 20, np.array([[width, height]] * 20, dtype=np.float64))
    annotations = [{"bbox": b.tolist(), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0} for b in boxes]
    record = {"file_name": str(tmp_path / "a.png"), "width": width, "height": height, "annotations": annotations}
    mapped = DatasetMapper(cfg, is_train=True)(record)["instances"].gt_boxes.tensor.numpy()
    ours, _ = resized(cfg, boxes, np.array([[width, height]] * 20, dtype=np.float64), 157)
    np.testing.assert_array_equal(ours[(ours[:, 2:] > ours[:, :2]).all(axis=1)], mapped)  # which drops empty ones


def test_the_remedy_that_is_proposed_helps(cfg, random_set):
    """With boxes a quarter as large, sizes a quarter as large are proposed, and give each of them an anchor."""
    for annotation in random_set.coco["annotations"]:
        annotation["bbox"][2:] = [round(side / 4, 2) for side in annotation["bbox"][2:]]
        annotation["area"] /= 16
    random_set.write()
    found = random_set.check(cfg).found
    (kind,) = [kind for kind in found.by_kind() if kind.name == "anchors-too-large"]
    print(found.explanation(kind))
    factor = float(found.explanation(kind).partition("SIZES times ")[2].split()[0])
    assert factor < 1
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[factor * s for s in level] for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES]
    better = random_set.check(cfg).found
    assert len(better.by_kind().get(kind, [])) < 0.5 * len(found.by_kind()[kind])


def test_a_box_between_the_anchors_and_one_beyond_them_are_told_apart(cfg, random_set):
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[size] for size in (16.0, 24.0, 36.0, 54.0, 220.0)]
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    image = random_set.coco["images"][0]
    image.update(width=600, height=500)
    random_set.draw(image)
    random_set.coco["images"] = [image]
    boxes = {"anchors-too-sparse": [40.5, 40.5, 110.0, 110.0], "anchors-too-small": [10.5, 10.5, 550.0, 480.0]}
    random_set.coco["annotations"] = [
        {"id": i, "image_id": 1, "category_id": i, "bbox": box, "area": 0.7 * box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(boxes.values(), 1)
    ]
    random_set.coco["categories"] = random_set.coco["categories"][:2]
    random_set.write()
    found = random_set.check(cfg).found
    anchors = {(place[0], place[3]) for place in places(found) if place[0].startswith("anchors")}
    assert anchors == {("anchors-too-sparse", 1), ("anchors-too-small", 2)}


def test_groups_need_no_anchor(cfg, random_set):
    annotation = random_set.some()
    annotation.update(bbox=[3.5, 3.5, 5.0, 5.0], area=20.0, iscrowd=1)
    random_set.write()
    assert [finding.kind.name for finding in random_set.check(cfg).found] == ["boxes-dropped"]
