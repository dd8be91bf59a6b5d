"""Inference of a whole detector, and what comes after its convolutions alone."""

from functools import partial

import torch
from torchvision.ops import box_iou

from benchmarks import inputs, models, options
from benchmarks.case import Disagreement, Step
from benchmarks.detectors import (
    CONVOLUTIONS,
    DETECTRON2,
    PLAIN,
    PLUGIN,
    TORCHVISION,
    DetectorCase,
    all_sides,
    convolutions,
    few_sides,
)


def add_options(parser, quick):
    options.batches(parser, quick, default=[2])
    options.sizes(parser, quick, default=[400, 600])


def cases(args):
    size, network = (64, models.SMALL) if args.quick else (800, ())
    arguments = {"size": size, "images": 1, "network": network, "device": args.device}
    case, growth = partial(InferenceCase, **arguments), few_sides(args.device)
    shape = inputs.shape_name(size)
    name = f"1 image, {shape}"
    return [
        case("inference", name, all_sides(args.device)),
        PostprocessingCase("after the convolutions", name, [(DETECTRON2, PLAIN), (PLUGIN, PLAIN)], **arguments),
        *(case(f"batch ({shape})", f"{n} images", growth, images=n) for n in args.batches),
        *(case("size (1 image)", inputs.shape_name(s), growth, size=s) for s in args.sizes),
    ]


class InferenceCase(DetectorCase):
    """Images to detections in the size of the images."""

    def step(self, impl):
        model = self.model(impl).eval()
        detector, _ = self.pairs[impl]
        images = [{name: x[name] for name in ("image", "height", "width")} for x in self.batch]
        if detector == CONVOLUTIONS:
            tensor = model.preprocess_image(images).tensor
            return Step(_without_gradient(self._autocast, impl, convolutions, model, tensor))
        if detector == TORCHVISION:
            return Step(_without_gradient(model, self.torchvision_images))
        if detector == PLUGIN:  # TEST.PRECISION autocasts
            return Step(_without_gradient(model, images), outcome=_detections)
        return Step(_without_gradient(self._autocast, impl, model, images), outcome=_detections)

    def check(self, impl, outcome, expected):
        _, setting = self.pairs[impl]
        if setting == PLAIN:
            _require_same(outcome, expected)
        elif setting.dtype == torch.float32:  # rounding changes which of two similar detections is kept
            _require_similar(outcome, expected, 0.9)
        # Random weights amplify the rounding of half precision until half of the detections are others.

    def _autocast(self, impl, function, *arguments):
        with self.autocast(impl):
            return function(*arguments)


class PostprocessingCase(DetectorCase):
    """Predictions of backbone and head to detections in the size of the network's input."""

    def step(self, impl):
        model = self.model(impl).eval()
        images = model.preprocess_image(self.batch)
        with torch.no_grad():
            features = model.backbone(images.tensor)
            features = [features[f] for f in model.head_in_features]
            original = model.head(features)[:2]  # logits and deltas
        given = []

        def prepare():  # Detectron2 may write into the logits
            given[:] = [[x.clone() for x in levels] for levels in original]

        run = _without_gradient(lambda: model.forward_inference(images, features, given))
        return Step(run, prepare, lambda results: _detections([{"instances": x} for x in results]))

    def check(self, impl, outcome, expected):
        _require_same(outcome, expected)


def _without_gradient(function, *arguments):
    def run():
        with torch.no_grad():
            return function(*arguments)

    return run


def _detections(outputs):
    """Of all images: ``image`` (D,), the image that each belongs to, ``classes`` (D,), ``boxes`` (D, 4)."""
    instances = [output["instances"] for output in outputs]
    return {
        "image": torch.cat([torch.full((len(x),), i) for i, x in enumerate(instances)]),
        "classes": torch.cat([x.pred_classes for x in instances]).cpu(),
        "boxes": torch.cat([x.pred_boxes.tensor for x in instances]).float().cpu(),
    }


def _require_same(outcome, expected):
    """The same detections, in whatever order: equal scores have none."""
    if not len(expected["classes"]):
        raise Disagreement("the reference detects nothing: there is nothing to compare")
    count = len(outcome["classes"])
    if count != len(expected["classes"]):
        raise Disagreement(f"{count} detections, but the reference has {len(expected['classes'])}")
    close = (expected["boxes"][:, None] - outcome["boxes"]).abs().amax(dim=2) <= 1e-4 * expected["boxes"].max()
    same = _same_class(outcome, expected) & close
    lacking, more = (~same.any(dim=1)).sum().item(), (~same.any(dim=0)).sum().item()
    if lacking or more:
        raise Disagreement(f"of the reference's detections, it lacks {lacking} and has {more} more")


def _require_similar(outcome, expected, share):
    same = _same_class(outcome, expected) & (box_iou(expected["boxes"], outcome["boxes"]) > 0.5)
    found = same.any(dim=1).float().mean().item()
    if not found >= share:
        raise Disagreement(f"finds {found:.0%} of what the reference detects, less than {share:.0%}")


def _same_class(outcome, expected):
    """bool (expected detections, detections): of the same image and class."""
    return (expected["image"][:, None] == outcome["image"]) & (expected["classes"][:, None] == outcome["classes"])


if __name__ == "__main__":
    from benchmarks.runner import main

    main("benchmarks.inference")
