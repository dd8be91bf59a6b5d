"""Detectron (1): its network under its own names and its decoding, restated here, against the plugin.

Equal are asked to be the images as the networks see them, candidates of P7 above the threshold, and boxes of
more than 8 pixels, since of a box outside the image Detectron keeps its last pixel.
"""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator

from benchmarks import models
from retina_plugin.checkpoint import CheckpointError
from retina_plugin.checkpoint.converters import convert, detect_source
from retina_plugin.modeling.assigners.anchor_grid import AnchorGrid

from .converted import compare_detections, convert_file, load_converted, read_config, set_decidable_nms
from .plain_network import all_layers, our_name, predictions
from .restated import class_wise_nms, sigmoid

MEAN = np.array([102.9801, 115.9465, 122.7717])
SIZE = (128, 340)  # padded to 128 x 384
STRIDES = (8, 16, 32, 64, 128)
LAST_BLOCK = {3: 3, 4: 5, 5: 2}


def their_name(layer):
    """Blob names of the convolution and of its norm, without the last letter."""
    kind, *where = layer
    if kind == "stem":
        return "conv1", "res_conv1_bn"
    if kind == "block":
        stage, block, part = where
        branch = {"first": "2a", "3x3": "2b", "last": "2c", "shortcut": "1"}[part]
        return f"res{stage}_{block}_branch{branch}", f"res{stage}_{block}_branch{branch}_bn"
    names = {
        "lateral": lambda level: f"fpn_inner_res{level}_{LAST_BLOCK[level]}_sum" + ("" if level == 5 else "_lateral"),
        "output": lambda level: f"fpn_res{level}_{LAST_BLOCK[level]}_sum",
        "p6": lambda: "fpn_6",
        "p7": lambda: "fpn_7",
        "tower": lambda head, i: f"retnet_{'cls' if head == 'cls' else 'bbox'}_conv_n{i}_fpn3",
        "predictor": lambda head: f"retnet_{'cls' if head == 'cls' else 'bbox'}_pred_fpn3",
    }
    return names[kind](*where), None


@pytest.fixture(scope="module")
def blobs():
    """Weights as in a file of Detectron's model zoo, lively, in float64, with momenta and a layer that nobody used."""
    ours = {name: value.double() for name, value in models.weights().items()}
    theirs = {"fc1000_w": np.zeros((10, 20), dtype=np.float32)}
    for layer, has_norm in all_layers():
        name, (conv, norm) = our_name(layer), their_name(layer)
        theirs[f"{conv}_w"] = ours[f"{name}.weight"].numpy()
        theirs[f"{conv}_w_momentum"] = np.zeros(3, dtype=np.float32)
        if has_norm:
            mean, var, gain, shift = (
                ours[f"{name}.norm.{x}"].numpy() for x in ("running_mean", "running_var", "weight", "bias")
            )
            theirs[f"{norm}_s"] = gain / np.sqrt(var)
            theirs[f"{norm}_b"] = shift - mean * theirs[f"{norm}_s"]
        else:
            theirs[f"{conv}_b"] = ours[f"{name}.bias"].numpy()
    spread_predictions(theirs)
    return theirs


@torch.no_grad()
def spread_predictions(blobs):
    """Let some 500 candidates of a padded image score above the threshold: nothing was trained to ignore a border."""
    pixels = padded(torch.randint(0, 256, (3, *SIZE)) - torch.from_numpy(MEAN)[:, None, None])
    blobs["retnet_cls_pred_fpn3_b"][:] = 0
    outputs = predictions(find_in(blobs), pixels, stride_in_1x1=True, relu_before_p7=True)
    logits, deltas = (torch.cat([level[i].flatten() for level in outputs]) for i in range(2))
    blobs["retnet_bbox_pred_fpn3_w"] *= 0.3 / deltas.std().item()
    blobs["retnet_cls_pred_fpn3_w"] /= logits.std().item()
    best = (logits / logits.std()).kthvalue(len(logits) - 500).values.item()
    blobs["retnet_cls_pred_fpn3_b"][:] = np.log(0.05 / 0.95) - best


def padded(pixels):
    """(1, 3, height, width), multiples of 128."""
    height, width = (-side % 128 for side in pixels.shape[1:])
    return torch.nn.functional.pad(pixels[None], (0, width, 0, height))


def find_in(blobs):
    def tensor(name):
        return torch.from_numpy(blobs[name])

    def find(layer):
        conv, norm = their_name(layer)
        if norm is None:
            return tensor(f"{conv}_w"), tensor(f"{conv}_b"), None, None
        return tensor(f"{conv}_w"), None, tensor(f"{norm}_s"), tensor(f"{norm}_b")

    return find


def their_cell_anchors(stride):
    """(9, 4): for each of three scales the ratios 1, 2, 0.5; boxes end with their last pixel."""
    anchors = []
    for octave in range(3):
        for ratio in (1.0, 2.0, 0.5):
            width = np.round(np.sqrt(stride * stride / ratio))
            height = np.round(width * ratio)
            size = np.array([width, height]) * 4 * 2 ** (octave / 3)
            center = 0.5 * (stride - 1)
            anchors.append(np.concatenate([center - 0.5 * (size - 1), center + 0.5 * (size - 1)]))
    return np.stack(anchors)


def their_detections(outputs, image_size, nms_threshold, p7_threshold):
    boxes, scores, classes = [], [], []
    for (logits, deltas), stride in zip(outputs, STRIDES):
        height, width = logits.shape[2:]
        score = sigmoid(logits.numpy()).reshape(9, 80, height, width)
        deltas = deltas.numpy().reshape(9, 4, height, width)
        a, c, y, x = np.nonzero(score > (p7_threshold if stride == 128 else 0.05))
        best = np.argsort(-score[a, c, y, x], kind="stable")[:1000]
        a, c, y, x = a[best], c[best], y[best], x[best]
        anchors = np.stack([x, y, x, y], axis=1) * stride + their_cell_anchors(stride)[a]
        delta = deltas[a, :, y, x]
        size = anchors[:, 2:] - anchors[:, :2] + 1
        center = anchors[:, :2] + 0.5 * size + delta[:, :2] * size
        size = np.exp(np.minimum(delta[:, 2:], np.log(1000 / 16))) * size
        box = np.concatenate([center - 0.5 * size, center + 0.5 * size - 1], axis=1)
        boxes.append(np.clip(box, 0, np.array([image_size[1], image_size[0]] * 2) - 1))
        scores.append(score[a, c, y, x])
        classes.append(c)
    boxes, scores, classes = (np.concatenate(x) for x in (boxes, scores, classes))
    kept = class_wise_nms(boxes, scores, classes, nms_threshold, last_pixel=1)  # of which it returns 100
    return boxes[kept], scores[kept], classes[kept]


def is_not_a_strip(boxes):
    """Of a box outside the image Detectron keeps its last pixel, which may suppress a box of two, and so on."""
    return (boxes[:, 2:] - boxes[:, :2] > 8).all(dim=1)


@torch.no_grad()
def test_same_detections(tmp_path, blobs):
    stem, output = convert_file(tmp_path, {"blobs": blobs, "cfg": "MODEL: {}"}, pickled=True)
    converted = torch.load(f"{stem}.pth", weights_only=True)["model"]
    used = sum(not name.endswith("_momentum") for name in blobs) - 1
    # Each norm is two blobs, and four arrays here.
    assert len(converted) == used + 2 * sum(name.endswith("_bn_s") for name in blobs)
    assert f"weights of detectron became {len(converted)} of FocalRetinaNet" in output
    cfg = read_config(stem)
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 and cfg.INPUT.FORMAT == "BGR"
    assert cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA == 0.11

    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    pixels = padded(torch.from_numpy(image.numpy() - MEAN[:, None, None]))
    outputs = predictions(find_in(blobs), pixels, stride_in_1x1=True, relu_before_p7=True)
    model = load_converted(stem)
    assert model.postprocessor.max_detections_per_image == 100
    model.postprocessor.max_detections_per_image = 10**6
    threshold = set_decidable_nms(model, [{"image": image}])
    found = model([{"image": image}])[0]["instances"]
    found = found[is_not_a_strip(found.pred_boxes.tensor)]

    boxes, scores, classes = (
        torch.from_numpy(x) for x in their_detections(outputs, SIZE, threshold, p7_threshold=0.05)
    )
    boxes[:, 2:] += 1
    inside = is_not_a_strip(boxes)
    print(f"Detectron: {used} weights in use -> {len(converted)}")
    compare_detections("Detectron R-50", found, boxes[inside], scores[inside], classes[inside])
    # What it lets pass at P7 besides: nothing that scores above the threshold.
    all_scores = torch.from_numpy(their_detections(outputs, SIZE, threshold, p7_threshold=0.0)[1])
    assert len(all_scores) > len(scores) and torch.equal(all_scores[: len(scores)], scores)
    assert all_scores[len(scores)] <= 0.05


def test_anchors_are_detectrons_one_pixel_longer(blobs):
    cfg = models.plugin_config("cpu")
    config = convert({"model": blobs}).config
    cfg.merge_from_list([x for key in config if key.startswith("MODEL.ANCHOR_GENERATOR.") for x in (key, config[key])])
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=s) for s in STRIDES])
    sizes = [(13, 21), (7, 11), (4, 6), (2, 3), (1, 2)]
    anchors = generator([torch.zeros(1, 1, *size) for size in sizes])
    assert AnchorGrid.find(anchors, generator.num_cell_anchors) is not None
    for level, (height, width), stride in zip(anchors, sizes, STRIDES):
        y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
        theirs = np.stack([x, y, x, y], axis=2)[:, :, None] + their_cell_anchors(stride)
        theirs[..., 2:] += 1
        ratio_ours = theirs.reshape(height, width, 3, 3, 4)[:, :, :, [2, 0, 1]]
        difference = np.abs(level.tensor.numpy().reshape(ratio_ours.shape) - ratio_ours).max()
        assert difference < 1e-4, stride


def test_softmax_heads_are_refused(blobs):
    assert detect_source(blobs) == "detectron"
    softmax = {
        **blobs,
        "retnet_cls_pred_fpn3_w": np.zeros((9 * 81, 256, 3, 3), dtype=np.float32),
        "retnet_cls_pred_fpn3_b": np.zeros(9 * 81, dtype=np.float32),
    }
    with pytest.raises(CheckpointError, match="81 outputs an anchor, .* softmax"):
        convert({"model": softmax})
    with pytest.raises(CheckpointError, match="--norm-eps"):
        convert({"model": blobs}, norm_eps=1e-3)
