"""Labels and boxes of all anchors, from the ground truth of a batch."""

from functools import cached_property, partial

import torch
from detectron2.structures import Boxes
from torchvision.models.detection import _utils as torchvision_detection
from torchvision.ops import box_iou

from benchmarks import inputs, options
from benchmarks.case import Case, Disagreement, Step, copy_step
from benchmarks.models import SMALL, detectron2_config, plugin_config, skeleton

PLUGIN, DETECTRON2, TORCHVISION = "plugin", "Detectron2", "torchvision"
LOWER_BOUND = "lower bound: writing labels and boxes"
CLASSES = 5  # as the networks of SMALL, which play no part


def add_options(parser, quick):
    options.integers(parser, "--boxes", [3, 40] if quick else [1, 20, 200, 1000, 2000], "boxes of the image")
    options.batches(parser, quick)
    options.sizes(parser, quick)


def cases(args):
    size = 64 if args.quick else 800
    case = partial(MatchingCase, size=size, images=1, boxes=20, device=args.device)
    shape = inputs.shape_name(size)
    return [
        *(case(f"boxes ({shape}, 1 image)", f"{g} boxes", boxes=g) for g in args.boxes),
        *(case(f"batch ({shape}, 20 boxes an image)", f"{n} images", images=n) for n in args.batches),
        *(case("size (1 image, 20 boxes)", inputs.shape_name(s), size=s) for s in args.sizes),
    ]


class MatchingCase(Case):
    lower_bounds = dict.fromkeys((PLUGIN, DETECTRON2, TORCHVISION), LOWER_BOUND)

    def __init__(self, group, name, *, size, images, boxes, device):
        super().__init__(group, name, (PLUGIN, DETECTRON2, TORCHVISION, LOWER_BOUND))
        self.size, self.images, self.boxes, self.device = size, images, boxes, device
        self.scale = 4 * boxes * 9 * sum(h * w for h, w in inputs.level_shapes(size))  # the IoU of all pairs

    def miniature(self):
        return MatchingCase(self.group, self.name, size=64, images=self.images, boxes=5, device=self.device)

    def step(self, impl):
        if impl == PLUGIN:
            plugin = skeleton(plugin_config(self.device, SMALL))
            num_cell_anchors = plugin.anchor_generator.num_cell_anchors
            assign = partial(plugin.assigner, self._anchors(plugin), self.instances, num_cell_anchors=num_cell_anchors)
            return Step(assign, outcome=lambda targets: _outcome((targets.labels, targets.boxes)))
        detectron2 = skeleton(detectron2_config(self.device, SMALL))
        anchors = self._anchors(detectron2)
        if impl == DETECTRON2:
            return Step(partial(detectron2.label_anchors, anchors, self.instances), outcome=_outcome)
        if impl == TORCHVISION:
            return Step(partial(_torchvision, Boxes.cat(anchors).tensor, self.instances), outcome=_outcome)
        return copy_step(_outcome(detectron2.label_anchors(anchors, self.instances)).values())

    def _anchors(self, model):
        return model.anchor_generator(
            [torch.empty(1, 1, *s, device=self.device) for s in inputs.level_shapes(self.size)]
        )

    def check(self, impl, outcome, expected):
        labels, expected_labels = outcome["labels"], expected["labels"]
        different = (labels != expected_labels).float().mean().item()
        # torchvision rounds IoUs in its own way, and a box that touches no anchor is another matter.
        if different > (1e-4 if impl == TORCHVISION else 0):
            raise Disagreement(f"{different:.1e} of the labels differ from the reference's")
        positive = (labels == expected_labels) & (labels >= 0) & (labels < CLASSES)
        if not torch.equal(outcome["boxes"][positive], expected["boxes"][positive]) and impl != TORCHVISION:
            raise Disagreement("positive anchors have other boxes than the reference's")

    @cached_property
    def instances(self):
        return [x["instances"].to(self.device) for x in inputs.batch(self.size, self.images, self.boxes, CLASSES)]


@torch.no_grad()
def _torchvision(anchors, instances):
    """The matching of its ``RetinaNet.compute_loss``, and the labels that its losses take from it."""
    matcher = torchvision_detection.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    labels, boxes = [], []
    for image in instances:
        matches = matcher(box_iou(image.gt_boxes.tensor, anchors))
        is_class = matches >= 0
        labels_i = torch.where(matches == matcher.BETWEEN_THRESHOLDS, -1, CLASSES)
        labels_i[is_class] = image.gt_classes[matches[is_class]]
        labels.append(labels_i)
        boxes.append(image.gt_boxes.tensor[matches.clamp(min=0)])
    return labels, boxes


def _outcome(returned):
    # Detectron2 and torchvision give lists over images, the plugin tensors.
    labels, boxes = (x if isinstance(x, torch.Tensor) else torch.stack(x) for x in returned)
    return {"labels": labels, "boxes": boxes}


if __name__ == "__main__":
    from benchmarks.runner import main

    main("benchmarks.matching")
