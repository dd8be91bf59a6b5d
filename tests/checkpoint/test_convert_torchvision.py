"""torchvision's RetinaNets before and after: the same image through its own model and through the plugin's.

Equal are asked to be the images as the networks see them: torchvision resizes in floating point, Detectron2 in whole
numbers, so the images here need no resizing. The networks compute in float64, in which no rounding decides about a
candidate; both pad to multiples of 32.
"""

import re

import pytest
import torch
import torchvision
import yaml
from torchvision.models._meta import _COCO_CATEGORIES
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from benchmarks import models, torchvision_model
from retina_plugin.checkpoint import CheckpointError
from retina_plugin.checkpoint.converters import convert, detect_source
from retina_plugin.checkpoint.converters.torchvision import CONFIG
from retina_plugin.modeling import TorchvisionAnchorGenerator
from retina_plugin.modeling.assigners.anchor_grid import AnchorGrid

from .converted import (
    IMAGENET_RGB,
    compare_detections,
    convert_file,
    convert_file_error,
    load_converted,
    read_config,
    set_decidable_nms,
)

NETWORK = (*IMAGENET_RGB, "MODEL.RESNETS.STRIDE_IN_1X1", False)
SMALL = (*models.SMALL, *IMAGENET_RGB)
_BOX_OUTPUTS = [("weight", (256, 3, 3)), ("bias", ())]
NAMELESS = [i for i, name in enumerate(_COCO_CATEGORIES) if name in ("__background__", "N/A")]
RATIO_MAJOR = [0, 3, 6, 1, 4, 7, 2, 5, 8]  # of size-major anchors
SIZE = (150, 270)  # padded to 160 x 288, which the strides of P6 and P7 divide in neither direction


def make_source(network, num_classes, eps):
    """torchvision's model with lively weights in float64, for images of SIZE in RGB, 0..1."""
    network = (*network, "MODEL.RETINANET.NUM_CLASSES", num_classes)
    model = torchvision_model.build(models.detectron2_config("cpu", network), models.weights(network), 160).eval()
    overwrite_eps(model, eps)
    model.transform.min_size, model.transform.max_size = (min(SIZE),), max(SIZE)
    model.detections_per_img = 300
    with torch.no_grad():
        if num_classes == 91:  # trained as background alone
            model.head.classification_head.cls_logits.bias.view(9, 91)[:, NAMELESS] = -20
        if eps == 0.0:  # a layer whose variance is far below Detectron2's epsilon
            block = model.backbone.body.layer3[0]
            block.conv1.weight.mul_(1e-3)
            block.bn1.running_mean.mul_(1e-3)
            block.bn1.running_var.mul_(1e-6)
    return model.double()


def random_image():
    return torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)


@torch.no_grad()
def compare(title, source, stem, label_of_class):
    """Compare torchvision's model, in float64, with the one that was converted from it."""
    image = random_image()
    single, double = load_converted(stem, torch.float32), load_converted(stem)
    as_float = image.double() / 255
    expected = source.head(list(source.backbone(source.transform([as_float])[0].tensors).values()))
    for ours, tolerance in ((single, 1e-4), (double, 1e-10)):
        predictions = ours.raw_predictions([{"image": image}])
        for name, values, theirs in (
            ("logits", predictions.logits, expected["cls_logits"][..., label_of_class]),
            ("deltas", predictions.deltas, expected["bbox_regression"]),
        ):
            values = torch.cat([x[..., RATIO_MAJOR, :].flatten(1, 3) for x in values], dim=1)
            error = ((values - theirs).abs().max() / theirs.abs().max()).item()
            print(f"{title}: {name} in {values.dtype} differ by {error:.1e} of the largest")
            assert error < tolerance

    source.nms_thresh = set_decidable_nms(double, [{"image": image}])
    (theirs,) = source([as_float])
    found = double([{"image": image, "height": SIZE[0], "width": SIZE[1]}])[0]["instances"]
    with_area = (theirs["boxes"][:, 2:] > theirs["boxes"][:, :2]).all(dim=1)  # Detectron2 drops the others
    boxes, scores, labels = (theirs[key][with_area] for key in ("boxes", "scores", "labels"))
    classes = torch.tensor([label_of_class.index(x) for x in labels.tolist()])
    compare_detections(title, found, boxes, scores, classes)


def test_resnet50_as_published(tmp_path):
    """91 outputs, norms that add nothing to the variance."""
    source = make_source(NETWORK, 91, eps=0.0)
    state = source.state_dict()
    stem, output = convert_file(tmp_path, state)
    assert f"{len(state)} weights of torchvision became {len(state)} of FocalRetinaNet" in output
    cfg = read_config(stem)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 80 and cfg.MODEL.RESNETS.DEPTH == 50
    assert cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE == "p5" and not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    names = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["class_names"]
    label_of_class = [i for i in range(91) if i not in NAMELESS]
    assert names == [_COCO_CATEGORIES[i] for i in label_of_class]
    print(f"torchvision: {len(state)} weights -> {len(state)}")
    compare("torchvision R-50", source, stem, label_of_class)
    old = convert({"model": with_old_names(state)}).model
    new = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    assert old.keys() == new.keys() and all(torch.equal(old[name], value) for name, value in new.items())


def with_old_names(state):
    """As files of torchvision before 0.13, such as the published one, have them."""
    renamed = {}
    for name, value in state.items():
        for block in ("inner_blocks", "layer_blocks"):
            for i in range(3):
                name = name.replace(f"{block}.{i}.0.", f"{block}.{i}.")
        for part in ("classification_head", "regression_head"):
            for i in (3, 2, 1, 0):
                name = name.replace(f"{part}.conv.{i}.0.", f"{part}.conv.{2 * i}.")
        renamed[name] = value
    return renamed


def test_own_classes_and_eps(tmp_path):
    """ResNet-18 with 5 outputs, all of which are kept, and frozen norms as torchvision builds them."""
    source = make_source(SMALL, 5, eps=1e-5)
    stem, _ = convert_file(tmp_path, {"model": source.state_dict()}, "--norm-eps", "1e-5", "--from", "torchvision")
    cfg = read_config(stem)
    assert cfg.MODEL.RESNETS.DEPTH == 18 and cfg.MODEL.RETINANET.NUM_CLASSES == 5
    assert "class_names" not in torch.load(cfg.MODEL.WEIGHTS, weights_only=True)
    assert "Class i is torchvision's label i" in stem.with_suffix(".yaml").read_text()
    compare("torchvision R-18, 5 classes", source, stem, list(range(5)))


def test_batch_norms_that_were_trained(tmp_path):
    """They count batches, and add 1e-5 to the variance, which is left as it is."""
    model = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    state = model.state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert counters
    converted = convert({"model": state}).model
    assert len(converted) == len(state) - len(counters)
    assert torch.equal(converted["backbone.bottom_up.stem.conv1.norm.weight"], state["backbone.body.bn1.weight"])


@pytest.mark.parametrize("height, width", [(800, 1344), (160, 288), (32, 32), (640, 608), (512, 1024)])
def test_anchors_are_torchvisions(height, width):
    sizes = [[int(x) for x in level] for level in CONFIG["MODEL.ANCHOR_GENERATOR.SIZES"]]
    strides = (8, 16, 32, 64, 128)
    features = [torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in strides]
    theirs = AnchorGenerator(sizes, [[0.5, 1.0, 2.0]] * 5)(ImageList(torch.zeros(1, 3, height, width), [0]), features)[
        0
    ]
    generator = TorchvisionAnchorGenerator(sizes=sizes, aspect_ratios=[[0.5, 1.0, 2.0]], strides=strides, offset=0.0)
    anchors = generator(features)
    ours = torch.cat([x.tensor.view(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 4) for x in anchors])
    assert torch.equal(ours, theirs)
    assert AnchorGrid.find(anchors, generator.num_cell_anchors) is not None


def test_source_is_seen_from_the_names():
    build = torchvision.models.detection
    with torch.device("meta"):
        v1 = build.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
        other = build.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    assert detect_source(v1.state_dict()) == "torchvision"
    with pytest.raises(CheckpointError, match="no weights of a RetinaNet of torchvision.*: their names are backbone"):
        detect_source(other.state_dict())
    with pytest.raises(CheckpointError, match="already have this plugin's names"):
        detect_source(["head.cls_score.weight"])


@pytest.fixture
def small_state():
    network = (*SMALL, "MODEL.RETINANET.NUM_CLASSES", 5)
    return torchvision_model.build(models.detectron2_config("cpu", network), models.weights(network), 64).state_dict()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("backbone.fpn.inner_blocks.1.0.bias"), "backbone.fpn_lateral4.bias is missing"),
        (lambda s: s.update(mask=torch.zeros(3)), "mask belongs to no part of the detector"),
        (lambda s: s.pop("head.regression_head.bbox_reg.bias"), "no RetinaNet with P3 to P7 .* no head.bbox_pred.bias"),
        (lambda s: s.pop("backbone.body.layer2.1.conv1.weight"), r"blocks in its four stages"),
        (
            lambda s: s.update({"head.regression_head.conv.1.0.bias": torch.zeros(3)}),
            r"head.bbox_subnet.2.bias has the shape \(3,\) instead of \(256,\)",
        ),
        (
            lambda s: s.update({f"head.regression_head.bbox_reg.{n}": torch.zeros(12, *d) for n, d in _BOX_OUTPUTS}),
            "3 anchors a cell, and only the standard 9",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, small_state, change, message):
    change(small_state)
    assert re.search(f"source.pth: .*{message}", convert_file_error(tmp_path, small_state))
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]


def test_existing_files_are_left_alone(tmp_path, small_state):
    (tmp_path / "converted.yaml").write_text("mine")
    assert "converted.yaml exists" in convert_file_error(tmp_path, small_state)
    assert (tmp_path / "converted.yaml").read_text() == "mine" and not (tmp_path / "converted.pth").exists()


def test_both_files_are_written_or_none(tmp_path, small_state):
    (tmp_path / "converted.pth.unfinished").mkdir()  # the weights cannot be written
    assert "Is a directory" in convert_file_error(tmp_path, small_state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted.pth.unfinished", "source.pth"]


def test_written_configurations_are_plain_yaml(tmp_path):
    stem, _ = convert_file(tmp_path, make_source(SMALL, 5, eps=1e-5).state_dict())
    text = stem.with_suffix(".yaml").read_text()
    config = yaml.safe_load(text)
    assert config["MODEL"]["WEIGHTS"] == str(tmp_path / "converted.pth") and "!!" not in text
    assert set(config) == {"MODEL", "DATASETS", "SOLVER", "INPUT", "TEST", "VERSION"}
