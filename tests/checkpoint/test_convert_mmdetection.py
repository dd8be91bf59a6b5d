"""mmdetection's RetinaNet: its network under its own names and its decoding, restated here, against the plugin.

Equal are asked to be the images as the networks see them, of sides that are multiples of 32, and no delta below
-log(62.5), where mmdetection alone stops.
"""

import numpy as np
import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform

from benchmarks import models
from retina_plugin.checkpoint import CheckpointError
from retina_plugin.checkpoint.converters import convert, detect_source

from .converted import (
    IMAGENET_RGB,
    compare_detections,
    convert_file,
    load_converted,
    read_config,
    set_decidable_nms,
)
from .plain_network import all_layers, our_name, predictions
from .restated import class_wise_nms, sigmoid

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
STYLES = {"pytorch": (*IMAGENET_RGB, "MODEL.RESNETS.STRIDE_IN_1X1", False), "caffe": ()}
SIZE = (160, 224)


def their_name(layer):
    """Names of the convolution and of its norm."""
    kind, *where = layer
    if kind == "stem":
        return "backbone.conv1", "backbone.bn1"
    if kind == "block":
        stage, block, part = where
        block = f"backbone.layer{stage - 1}.{block}"
        if part == "shortcut":
            return f"{block}.downsample.0", f"{block}.downsample.1"
        i = {"first": 1, "3x3": 2, "last": 3}[part]
        return f"{block}.conv{i}", f"{block}.bn{i}"
    names = {
        "lateral": lambda level: f"neck.lateral_convs.{level - 3}.conv",
        "output": lambda level: f"neck.fpn_convs.{level - 3}.conv",
        "p6": lambda: "neck.fpn_convs.3.conv",
        "p7": lambda: "neck.fpn_convs.4.conv",
        "tower": lambda head, i: f"bbox_head.{'cls' if head == 'cls' else 'reg'}_convs.{i}.conv",
        "predictor": lambda head: f"bbox_head.retina_{'cls' if head == 'cls' else 'reg'}",
    }
    return names[kind](*where), None


def make_source(style):
    """A state dict of mmdetection with lively weights."""
    ours, theirs = models.weights(STYLES[style]), {}
    for layer, has_norm in all_layers():
        name, (conv, norm) = our_name(layer), their_name(layer)
        theirs[f"{conv}.weight"] = ours[f"{name}.weight"]
        if has_norm:
            for part in ("weight", "bias", "running_mean", "running_var"):
                theirs[f"{norm}.{part}"] = ours[f"{name}.norm.{part}"]
            theirs[f"{norm}.num_batches_tracked"] = torch.tensor(7)
        else:
            theirs[f"{conv}.bias"] = ours[f"{name}.bias"]
    return theirs


def find_in(state):
    def find(layer):
        conv, norm = their_name(layer)
        weight, bias = state[f"{conv}.weight"].double(), state.get(f"{conv}.bias")
        if norm is None:
            return weight, bias.double(), None, None
        mean, var, gain, shift = (
            state[f"{norm}.{x}"].double() for x in ("running_mean", "running_var", "weight", "bias")
        )
        scale = gain / (var + 1e-5).sqrt()
        return weight, None, scale, shift - mean * scale

    return find


def their_anchors(height, width, stride):
    """(height, width, 9, 4) in mmdetection's order: the ratio changes slowest."""
    scales = 4 * 2 ** (np.arange(3) / 3)
    h_ratios = np.sqrt([0.5, 1.0, 2.0])
    w = (stride / h_ratios[:, None] * scales[None, :]).ravel()
    h = (stride * h_ratios[:, None] * scales[None, :]).ravel()
    base = np.stack([-w / 2, -h / 2, w / 2, h / 2], axis=1)
    y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
    return np.stack([x, y, x, y], axis=2)[:, :, None] + base


def their_detections(outputs, image_size, nms_threshold):
    boxes, scores, classes, smallest = [], [], [], 0.0
    for (logits, deltas), stride in zip(outputs, (8, 16, 32, 64, 128)):
        height, width = logits.shape[2:]
        logits = logits[0].permute(1, 2, 0).reshape(-1, 80).numpy()
        deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4).numpy()
        anchors = their_anchors(height, width, stride).reshape(-1, 4)
        score = sigmoid(logits)
        anchor, c = np.nonzero(score > 0.05)
        best = np.argsort(-score[anchor, c], kind="stable")[:1000]
        anchor, c = anchor[best], c[best]
        smallest = min(smallest, deltas[anchor, 2:].min(initial=0))
        limit = abs(np.log(16 / 1000))
        size = anchors[anchor, 2:] - anchors[anchor, :2]
        center = (anchors[anchor, :2] + anchors[anchor, 2:]) / 2 + deltas[anchor, :2] * size
        size = size * np.exp(np.clip(deltas[anchor, 2:], -limit, limit))
        limits = [image_size[1], image_size[0]] * 2
        boxes.append(np.clip(np.concatenate([center - size / 2, center + size / 2], axis=1), 0, limits))
        scores.append(score[anchor, c])
        classes.append(c)
    boxes, scores, classes = (np.concatenate(x) for x in (boxes, scores, classes))
    valid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    boxes, scores, classes = boxes[valid], scores[valid], classes[valid]
    kept = class_wise_nms(boxes, scores, classes, nms_threshold)  # of which it returns 100
    return boxes[kept], scores[kept], classes[kept], smallest


@torch.no_grad()
@pytest.mark.parametrize("style", STYLES)
def test_same_detections(tmp_path, style):
    state = make_source(style)
    meta = {"config": f"model = dict(backbone=dict(style='{style}'))"} if style == "caffe" else {}
    stem, output = convert_file(tmp_path, {"state_dict": state, "meta": meta})
    counters = sum(name.endswith("num_batches_tracked") for name in state)
    assert f"{len(state)} weights of mmdetection became {len(state) - counters} of FocalRetinaNet" in output
    assert ("'pytorch' style" in output) == (style == "pytorch")
    cfg = read_config(stem)
    assert cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE == "res5" and not cfg.MODEL.FPN.TOP_BLOCK_RELU
    assert (cfg.INPUT.FORMAT == "BGR") == cfg.MODEL.RESNETS.STRIDE_IN_1X1 == (style == "caffe")

    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)  # in the order of the channels
    if style == "caffe":
        mean, std = MEAN[::-1], np.ones(3)
    else:
        mean, std = MEAN, STD
    pixels = torch.from_numpy((image.numpy() - mean[:, None, None]) / std[:, None, None])[None]
    outputs = predictions(find_in(state), pixels, stride_in_1x1=style == "caffe", relu_before_p7=False)
    model = load_converted(stem)
    boxes, scores, classes, smallest = their_detections(outputs, SIZE, set_decidable_nms(model, [{"image": image}]))
    assert smallest > np.log(16 / 1000)
    assert model.postprocessor.max_detections_per_image == 100
    model.postprocessor.max_detections_per_image = 10**6  # boxes without area take no place there, but do here
    found = model([{"image": image}])[0]["instances"]
    print(f"mmdetection ({style}): {len(state)} weights -> {len(state) - counters}")
    arrays = (torch.from_numpy(x) for x in (boxes, scores, classes))
    compare_detections(f"mmdetection R-50 ({style})", found, *arrays)


def test_a_shrinking_delta_differs_by_less_than_a_62nd_of_the_anchor():
    anchor = torch.tensor([[0.0, 0.0, 512.0, 256.0]])
    for delta in (-4.2, -6.0, -50.0):
        box = Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).apply_deltas(torch.tensor([[0.0, 0.0, delta, delta]]), anchor)
        width = 512 * np.exp(max(delta, -np.log(62.5)))
        assert 0 <= width - (box[0, 2] - box[0, 0]).item() < 512 / 62.5


def test_class_names_are_those_of_the_file():
    state = make_source("pytorch")
    names = [f"class {i}" for i in range(80)]
    for meta in ({"CLASSES": tuple(names)}, {"dataset_meta": {"classes": names}}, {"dataset_meta": {"CLASSES": names}}):
        assert convert({"model": state, "meta": meta}).class_names == names
    assert convert({"model": state}).class_names[:3] == ["person", "bicycle", "car"]


def test_p6_from_p5_is_seen_from_its_channels():
    state = make_source("pytorch")
    state["neck.fpn_convs.3.conv.weight"] = state["neck.fpn_convs.3.conv.weight"][:, :256]
    assert detect_source(state) == "mmdetection"
    assert convert({"model": state}).config["MODEL.FPN.TOP_BLOCK_IN_FEATURE"] == "p5"


def test_other_heads_are_refused():
    state = make_source("pytorch")
    state["bbox_head.retina_reg.weight"] = torch.zeros(4, 256, 3, 3)
    state["bbox_head.retina_reg.bias"] = torch.zeros(4)
    with pytest.raises(CheckpointError, match="1 anchors a cell, and only the standard 9"):
        convert({"model": state})
