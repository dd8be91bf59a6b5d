"""One training step of a whole detector: forward and backward, without the optimizer."""

from functools import partial

import torch
from detectron2.utils.events import EventStorage

from benchmarks import inputs, models, options
from benchmarks.case import Step, require_close
from benchmarks.detectors import (
    CONVOLUTIONS,
    PLAIN,
    TORCHVISION,
    DetectorCase,
    all_sides,
    convolutions,
    few_sides,
)


def add_options(parser, quick):
    options.batches(parser, quick, default=[2])
    options.sizes(parser, quick, default=[400])


def cases(args):
    size, network = (64, models.SMALL) if args.quick else (800, ())
    case = partial(TrainingCase, size=size, images=1, network=network, device=args.device)
    growth = few_sides(args.device)
    shape = inputs.shape_name(size)
    return [
        case("step", f"1 image, {shape}", all_sides(args.device)),
        *(case(f"batch ({shape})", f"{n} images", growth, images=n) for n in args.batches),
        *(case("size (1 image)", inputs.shape_name(s), growth, size=s) for s in args.sizes),
    ]


class TrainingCase(DetectorCase):
    def step(self, impl):
        model = self.model(impl).train()
        prepare = partial(model.zero_grad, set_to_none=True)
        detector, _ = self.pairs[impl]
        if detector == CONVOLUTIONS:
            return Step(self._convolutions(impl, model), prepare)
        if detector == TORCHVISION:  # its normalizer is another, and its losses are no figures to compare
            return Step(partial(self._losses, impl, partial(self._torchvision, model)), prepare)
        return Step(partial(self._losses, impl, partial(model, self.batch)), prepare, outcome=dict)

    def check(self, impl, outcome, expected):
        _, setting = self.pairs[impl]
        # Whatever is not the plain setting sums in another order, or rounds to half precision.
        tolerance = 1e-5 if setting == PLAIN else 1e-2 if setting.dtype == torch.float32 else 0.1
        for name, loss in expected.items():
            require_close(name, outcome[name], loss, tolerance)

    def _losses(self, impl, forward):
        with EventStorage(), self.autocast(impl):
            losses = forward()
        sum(losses.values()).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _torchvision(self, model):
        instances = [x["instances"].to(self.device) for x in self.batch]
        targets = [{"boxes": x.gt_boxes.tensor, "labels": x.gt_classes} for x in instances]
        return model(self.torchvision_images, targets)

    def _convolutions(self, impl, model):
        images = model.preprocess_image(self.batch).tensor
        with torch.no_grad(), self.autocast(impl):
            gradients = [torch.randn_like(x) for x in convolutions(model, images)]

        def run():
            with self.autocast(impl):
                predictions = convolutions(model, images)
            torch.autograd.backward(predictions, gradients)

        return run


if __name__ == "__main__":
    from benchmarks.runner import main

    main("benchmarks.training")
