"""Pairs of this plugin's detector and Detectron2's own RetinaNet with the same configuration and weights."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from retina_plugin import add_retina_config, merge_config

from ..deviations import Deviations

CONFIGS = Path(__file__).parents[2] / "configs"
# A ResNet-50 with a quarter of its channels, for what does not depend on them.
NARROW = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "16"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.FPN.OUT_CHANNELS", "64"),
)
_DEVIATIONS = Deviations()


def pytest_terminal_summary(terminalreporter):
    _DEVIATIONS.report(terminalreporter, "largest deviations from Detectron2's own RetinaNet")


@pytest.fixture
def assert_close():
    """assert_close(quantity, ours, theirs, tolerance): largest difference over largest magnitude; recorded."""
    return _DEVIATIONS.check


def make_config(name, *opts):
    """A configuration of configs/ on the CPU, for this plugin and for Detectron2's own RetinaNet."""
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, str(CONFIGS / name), ["MODEL.DEVICE", "cpu", *opts])
    theirs = cfg.clone()
    theirs.MODEL.META_ARCHITECTURE = "RetinaNet"
    theirs.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    return cfg, theirs


@pytest.fixture
def make_pair():
    """make_pair(config name, *opts) -> (ours, theirs) with equal weights.

    The activations are normalized, and the predictions differ from each other (``lively``) or are those that
    training starts with.
    """

    def make(name="Base-RetinaNet.yaml", *opts, lively=True):
        cfg, their_cfg = make_config(name, *opts)
        ours, theirs = build_model(cfg), build_model(their_cfg)
        _normalize_activations(ours)
        if lively:
            _spread_predictions(ours)
        incompatible = theirs.load_state_dict(ours.state_dict(), strict=False)
        assert incompatible.missing_keys == []
        return ours, theirs

    return make


@torch.no_grad()
def _normalize_activations(model):
    """Give random weights what training would: statistics of the frozen norms, features of unit size.

    In one pass, in which each layer gets the inputs that it will have.
    """

    def take_statistics(norm, inputs):
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        variance = inputs[0].var(dim=(0, 2, 3))
        norm.running_var.copy_(variance.clamp(min=0.1 * variance.mean()))

    def scale(layer, inputs, level):
        size = level.std()
        layer.weight.div_(size)
        return level / size

    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    top_block = model.backbone.top_block
    layers = [model.backbone.get_submodule(f"fpn_output{i}") for i in (3, 4, 5)] + [top_block.p6, top_block.p7]
    assert not any(layer.bias.any() for layer in layers)
    hooks = [norm.register_forward_pre_hook(take_statistics) for norm in norms]
    hooks += [layer.register_forward_hook(scale) for layer in layers]
    model.backbone(model.preprocess_image([_random_input(0, 1) for _ in range(4)]).tensor)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def _spread_predictions(model):
    features = model.backbone(model.preprocess_image([_random_input(0, 1)]).tensor)
    logits, deltas = model.head([features[f] for f in model.head_in_features])[:2]
    for layer, outputs, spread in ((model.head.cls_score, logits, 1.0), (model.head.bbox_pred, deltas, 0.3)):
        layer.weight.mul_(spread / max(x.std() for x in outputs))
    model.head.cls_score.bias.fill_(-3.0)  # some detections, and none so sure that its score rounds to 1


@pytest.fixture
def make_batch():
    """make_batch(boxes per image, classes) -> inputs of random size, pixels, boxes and classes."""

    def make(counts, num_classes=80):
        return [_random_input(count, num_classes) for count in counts]

    return make


def _random_input(count, num_classes):
    height, width = torch.randint(130, 260, (2,)).tolist()
    corner = torch.rand(count, 2) * torch.tensor([width, height]) * 0.8
    size = 4 + torch.rand(count, 2) ** 2 * (torch.tensor([width, height]) - corner - 4)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + size], dim=1))
    instances.gt_classes = torch.randint(num_classes, (count,))
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": 2 * height, "width": 2 * width}
