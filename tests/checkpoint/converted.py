"""Running the command, loading what it wrote, and comparing detections."""

import contextlib
import io
import pickle

import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torchvision.ops import box_iou

from retina_plugin import add_retina_config, merge_config
from retina_plugin.__main__ import main

IMAGENET_RGB = ("MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]", "MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]")


def convert_file(folder, file, *options, pickled=False):
    """Save ``file``, as torch or as Detectron does, and convert it.

    Returns:
        The stem of what was written, and what was printed.
    """
    return folder / "converted", run(*_command(folder, file, options, pickled))


def convert_file_error(folder, file, *options, pickled=False):
    """Save ``file`` and let its conversion fail; returns the error."""
    return run_error(*_command(folder, file, options, pickled))


def _command(folder, file, options, pickled):
    source = folder / ("source.pkl" if pickled else "source.pth")
    if pickled:
        source.write_bytes(pickle.dumps(file))
    else:
        torch.save(file, source)
    return ["convert", str(source), str(folder / "converted"), *options]


def run(*arguments):
    """Run a command; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(list(arguments)) in (None, 0)
    return output.getvalue()


def run_error(*arguments):
    """Run a command that the user's input makes impossible; returns what it printed to standard error."""
    with contextlib.redirect_stderr(io.StringIO()) as output:
        assert main(list(arguments)) == 2
    assert output.getvalue().startswith("error: ")
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


def set_decidable_nms(model, batch):
    """Set the NMS threshold to the middle of the widest gap between the IoUs, near 0.5, of candidates of a class.

    Otherwise rounding may decide which box stays: in float32, up to a thousand boxes are moved by a multiple of the
    image's size for each class, which changes their IoUs by up to some 1e-4, and more of them by up to 2e-7.

    Returns:
        The threshold, for the other detector.
    """
    postprocessor = model.postprocessor
    assert postprocessor.nms_thresh == 0.5
    limit = postprocessor.max_detections_per_image
    postprocessor.nms_thresh, postprocessor.max_detections_per_image = 1.0, 10**6
    ious = [torch.tensor([0.4, 0.6], dtype=torch.float64)]
    for candidates in postprocessor(*model.raw_predictions(batch)[:4]):
        assert len(candidates) > 20, "too few candidates to suppress any"
        boxes, classes = candidates.pred_boxes.tensor.double(), candidates.pred_classes
        ious.append(box_iou(boxes, boxes)[(classes[:, None] == classes).triu(1)])
    ious = torch.cat(ious)
    ious = ious[(ious >= 0.4) & (ious <= 0.6)].sort().values
    widest = ious.diff().argmax()
    assert ious[widest + 1] - ious[widest] > 2e-4
    postprocessor.nms_thresh = ious[widest : widest + 2].mean().item()
    postprocessor.max_detections_per_image = limit
    return postprocessor.nms_thresh


def compare_detections(title, instances, boxes, scores, classes):
    """Assert equal detections and print the largest differences.

    The order among equal scores is left open: every detection must have exactly one counterpart, which is unique since
    NMS leaves no two boxes of a class that nearly agree.

    Args:
        instances: of this plugin's detector.
        boxes, scores, classes: tensors (D, 4), (D,), (D,) of the other.
    """
    assert len(scores) > 20, "too few detections to show anything"
    assert len(instances) == len(scores)
    assert (instances.scores.diff() <= 0).all()
    box_errors = (instances.pred_boxes.tensor[:, None] - boxes).abs().amax(dim=2)
    score_errors = (instances.scores[:, None] - scores).abs()
    same = (instances.pred_classes[:, None] == classes) & (box_errors < 1e-3) & (score_errors < 1e-6)
    assert (same.sum(dim=0) == 1).all() and (same.sum(dim=1) == 1).all()
    box_error, score_error = box_errors[same].max().item(), score_errors[same].max().item()
    print(f"{title}: {len(scores)} detections, largest difference {box_error:.1e} px, score {score_error:.1e}")
