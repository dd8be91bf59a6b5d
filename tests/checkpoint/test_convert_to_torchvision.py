"""This plugin's weights for torchvision's RetinaNet, or why not."""

import pytest
import torch
from torchvision.models._meta import _COCO_CATEGORIES
from torchvision.models.detection import retinanet_resnet50_fpn

from benchmarks import models
from retina_plugin.checkpoint.class_remap import COCO_NAMES

from .converted import compare_detections, convert_file, load_converted, run, run_error, set_decidable_nms
from .test_convert_torchvision import NETWORK, SIZE, make_source, random_image


def test_a_standard_detector_is_refused(tmp_path):
    torch.save({"model": {"head.cls_score.bias": torch.zeros(9)}}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(models.plugin_config("cpu", models.SMALL).dump())
    message = run_error("convert", str(tmp_path / "model_final.pth"), str(tmp_path / "out"), "--to", "torchvision")
    assert "torchvision's retinanet_resnet50_fpn cannot compute the same" in message
    for problem in (
        "MODEL.FPN.TOP_BLOCK_IN_FEATURE is res5 (torchvision: p5)",
        "MODEL.ANCHOR_GENERATOR.NAME is DefaultAnchorGenerator",
        "MODEL.RESNETS.DEPTH is 18",
        "INPUT.FORMAT is BGR",
    ):
        assert problem in message


@torch.no_grad()
@pytest.mark.parametrize("labels", [91, 5])
def test_there_and_back_with_torchvision(tmp_path, labels):
    source = make_source(NETWORK, labels, eps=1e-5)
    stem, _ = convert_file(tmp_path, source.state_dict(), "--norm-eps", "1e-5")
    ours = load_converted(stem)
    output = run("convert", f"{stem}.pth", str(tmp_path / "back"), "--to", "torchvision")
    assert not (tmp_path / "back.yaml").exists(), "torchvision has no configuration"
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert f"num_classes={labels})" in output

    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=labels).eval().double()
    theirs.load_state_dict(back, strict=True)
    theirs.transform.min_size, theirs.transform.max_size = (min(SIZE),), max(SIZE)
    for name, value in source.state_dict().items():
        if labels == 5 or "cls_logits" not in name:
            assert torch.equal(back[name], value), name
    if labels == 5:
        return

    image = random_image()
    theirs.nms_thresh = set_decidable_nms(ours, [{"image": image}])
    expected = theirs([image.double() / 255])[0]
    with_area = (expected["boxes"][:, 2:] > expected["boxes"][:, :2]).all(dim=1)
    boxes, scores, found_labels = (expected[key][with_area] for key in ("boxes", "scores", "labels"))
    found = ours([{"image": image}])[0]["instances"]
    assert torch.load(f"{stem}.pth", weights_only=True)["class_names"] == list(COCO_NAMES)
    found_labels = torch.tensor([COCO_NAMES.index(_COCO_CATEGORIES[i]) for i in found_labels])
    print(f"to torchvision: {len(ours.state_dict())} weights -> {len(back)}")
    compare_detections("to torchvision R-50", found, boxes, scores, found_labels)
