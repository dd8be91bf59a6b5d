"""Half precision in inference: which parts use it, and the error of predictions and detections."""

import logging

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

from retina_plugin import ConfigError, add_retina_config
from retina_plugin.modeling import precision
from retina_plugin.modeling.precision import autocast


def make_cfg(*opts):
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "FocalRetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_p3p7_resnet_fpn_backbone"
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
        + ["MODEL.FPN.OUT_CHANNELS", 32, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.NUM_CLASSES", 4]
        + ["MODEL.CHANNELS_LAST", True, "MODEL.PIXEL_STD", [58.0, 57.0, 57.0], *opts]
    )
    return cfg


def make_model(*opts):
    """Some classes have high scores, so that rounding does not change what is detected."""
    model = build_model(make_cfg(*opts))
    with torch.no_grad():
        model.head.cls_score.weight.mul_(20)
        model.head.bbox_pred.weight.mul_(5)
    return model


def make_input():
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 40.0, 50.0]]))
    instances.gt_classes = torch.tensor([1])
    return {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "instances": instances}


class Watch:
    """Records the dtypes of the inputs of a detector's parts."""

    def __init__(self, model):
        model.head.register_forward_hook(self._head)
        self._postprocessor, model.postprocessor = model.postprocessor, self

    def _head(self, head, inputs, outputs):
        self.predictions = {x.dtype for xs in outputs for x in xs}
        self.features = {x.dtype for x in inputs[0]}

    def __call__(self, *args):
        self.autocast = torch.is_autocast_enabled("cpu")
        return self._postprocessor(*args)


@torch.no_grad()
@pytest.mark.parametrize("name, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_only_backbone_and_head_compute_in_half_precision(name, dtype):
    model = make_model("TEST.PRECISION", name).eval()
    watch = Watch(model)
    (output,) = model([make_input()])
    assert watch.features == watch.predictions == {dtype} and not watch.autocast
    assert output["instances"].scores.dtype == output["instances"].pred_boxes.tensor.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@torch.no_grad()
@pytest.mark.parametrize("name, error", [("bf16", 0.05), ("fp16", 0.01)])
def test_predictions_and_detections_equal_float32_up_to_rounding(name, error):
    model, image, logits = make_model().eval(), make_input(), []
    model.head.register_forward_hook(lambda head, inputs, outputs: logits.append(outputs[0][0].float()))
    (expected,) = model([image])
    model.inference_precision = name
    (output,) = model([image])
    spread = (logits[0] - logits[0].mean()).norm()
    assert 0 < (logits[1] - logits[0]).norm() < error * spread

    expected, detections = expected["instances"][:20], output["instances"]
    assert len(expected) > 0
    overlaps = pairwise_iou(expected.pred_boxes, detections.pred_boxes)
    overlaps[expected.pred_classes[:, None] != detections.pred_classes] = 0
    close = (expected.scores[:, None] - detections.scores).abs() < 10 * error
    # NMS may keep another one of two boxes with similar scores.
    assert ((overlaps > 0.9) & close).any(dim=1).float().mean() >= 0.75


def test_training_is_not_affected():
    model = make_model("TEST.PRECISION", "bf16")
    watch = Watch(model)
    with EventStorage():
        model([make_input()])
    assert watch.features == watch.predictions == {torch.float32}


@torch.no_grad()
def test_fp32_keeps_the_autocast_of_the_caller():
    model = make_model().eval()
    watch = Watch(model)
    with torch.autocast("cpu", torch.bfloat16):
        model([make_input()])
    assert watch.predictions == {torch.bfloat16} and not watch.autocast


def test_unknown_precision():
    with pytest.raises(ConfigError, match="TEST.PRECISION is 'bf61', which is none of fp32, bf16, fp16. Did you mean"):
        make_model("TEST.PRECISION", "bf61")
    with pytest.raises(ValueError, match="'half' is none of fp32, bf16, fp16"):
        autocast("cpu", "half")


def test_a_slow_cpu_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(precision, "_cpu_has_convolutions", lambda name: name != "fp16")
    precision._warn_of_slow_cpu.cache_clear()
    for name in 2 * list(precision.PRECISIONS):
        autocast("cpu", name)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "convolutions in fp16:" in record.message
    precision._warn_of_slow_cpu.cache_clear()
