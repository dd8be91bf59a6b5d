"""Running the command, loading what it wrote, and comparing detections."""

import contextlib
import io
import pickle

import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from retina_plugin import add_retina_config, merge_config
from retina_plugin.__main__ import main

IMAGENET_RGB = ("MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]", "MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]")


def convert_file(folder, file, *options, pickled=False):
    """Save ``file``, as torch or as Detectron does, and convert it.

    Returns:
        The stem of what was written, and what was printed.
    """
    source, stem = folder / ("source.pkl" if pickled else "source.pth"), folder / "converted"
    if pickled:
        source.write_bytes(pickle.dumps(file))
    else:
        torch.save(file, source)
    return stem, run("convert", str(source), str(stem), *options)


def run(*arguments):
    """Run a command; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        main(list(arguments))
    return output.getvalue()


def read_config(stem):
    """The ``CfgNode`` that train_net.py would have."""
    assert "_BASE_" not in yaml.safe_load(stem.with_suffix(".yaml").read_text())
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, str(stem.with_suffix(".yaml")), ["MODEL.DEVICE", "cpu"])
    return cfg


def load_converted(stem, dtype=torch.float64):
    """The detector of the written configuration with the written weights, in evaluation mode.

    In float64 no rounding decides about a candidate, provided that the weights that were converted are float64.
    """
    cfg = read_config(stem)
    model = build_model(cfg).to(dtype)
    model.pixel_mean.copy_(torch.tensor(cfg.MODEL.PIXEL_MEAN, dtype=dtype).view(-1, 1, 1))
    model.pixel_std.copy_(torch.tensor(cfg.MODEL.PIXEL_STD, dtype=dtype).view(-1, 1, 1))
    file = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)
    assert file["__author__"] == "retina_plugin"
    incompatible = model.load_state_dict(file["model"], strict=False)
    assert incompatible.unexpected_keys == [] and incompatible.missing_keys == []
    return model.eval()


def compare_detections(title, instances, boxes, scores, classes):
    """Assert equal detections, in whatever order, and print the largest differences.

    Args:
        instances: of this plugin's detector.
        boxes, scores, classes: tensors (D, 4), (D,), (D,) of the other.
    """
    assert len(scores) > 20, "too few detections to show anything"
    assert len(instances) == len(scores)
    order, other = (_by_class(c, s) for c, s in ((instances.pred_classes, instances.scores), (classes, scores)))
    assert torch.equal(instances.pred_classes[order], classes[other])
    box_error = (instances.pred_boxes.tensor[order] - boxes[other]).abs().max().item()
    score_error = (instances.scores[order] - scores[other]).abs().max().item()
    print(f"{title}: {len(scores)} detections, largest difference {box_error:.1e} px, score {score_error:.1e}")
    assert box_error < 1e-3 and score_error < 1e-6


def _by_class(classes, scores):
    return (classes * 2 - scores.double()).argsort()
