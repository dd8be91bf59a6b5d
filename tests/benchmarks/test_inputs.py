"""Images and boxes as COCO's."""

import torch

from benchmarks import inputs


def test_pictures_are_padded_to_multiples_of_32():
    assert inputs.picture_shape(800) == (800, 1344)
    assert inputs.picture_shape(400) == (416, 672)
    assert 9 * sum(h * w for h, w in inputs.level_shapes(800)) == 201_600


def test_sizes_of_boxes_are_those_of_coco():
    """41 % of its boxes are small (below 32 x 32 pixels), 24 % large (above 96 x 96), in images 480 pixels high."""
    boxes = inputs.batch(480, images=1, boxes=20_000, num_classes=80)[0]["instances"].gt_boxes
    side = boxes.area().sqrt()
    assert abs((side < 32).float().mean() - 0.41) < 0.03
    assert abs((side > 96).float().mean() - 0.24) < 0.03


def test_boxes_lie_in_the_image():
    for size in (64, 333):
        height, width = inputs.picture_shape(size)
        boxes = inputs.batch(size, images=2, boxes=500, num_classes=3)[1]["instances"].gt_boxes
        x0, y0, x1, y1 = boxes.tensor.unbind(dim=1)
        assert x0.min() >= 0 and y0.min() >= 0 and x1.max() <= width and y1.max() <= height
        assert min((x1 - x0).min(), (y1 - y0).min()) > 3.99


def test_all_processes_have_the_same_inputs():
    torch.randn(3)
    first, second = (inputs.batch(64, images=2, boxes=5, num_classes=7) for _ in range(2))
    for x, y in zip(first, second):
        assert torch.equal(x["image"], y["image"])
        assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
        assert torch.equal(x["instances"].gt_classes, y["instances"].gt_classes)
    assert not torch.equal(first[0]["image"], first[1]["image"])
