"""The classification loss, forward and backward, from the head's output of every level."""

from functools import cached_property, partial

import torch
from detectron2.config import get_cfg
from detectron2.layers import cat
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from fvcore.nn import focal_loss as fvcore
from torch.nn import functional as F
from torchvision.models.detection.retinanet import RetinaNetClassificationHead

from benchmarks import inputs, options
from benchmarks.case import Case, Step, copy_step, require_close
from retina_plugin import add_retina_config
from retina_plugin.losses import LossContext, Targets, build_classification_loss
from retina_plugin.modeling.head import per_anchor

A, ALPHA, NORMALIZER = 9, 0.25, 100.0
PLUGIN, DETECTRON2, TORCHVISION, FVCORE = "plugin", "Detectron2", "torchvision", "fvcore"
LOWER_BOUND = "lower bound: a copy of the logits"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of value and gradient. Half precision: torchvision rounds probabilities to it.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# MODEL.RETINANET.CLS_LOSS -> keys of the plugin, fvcore's function and its parameters. fvcore's FL* has no shift.
LOSSES = {
    "focal": ((), "sigmoid_focal_loss", {"gamma": 2.0}),
    "focal_star": (("MODEL.RETINANET.FOCAL_STAR_BETA", 0.0), "sigmoid_focal_loss_star", {"gamma": 2.0}),
    "cross_entropy": ((), "sigmoid_focal_loss", {"gamma": 0.0}),
}


def add_options(parser, quick):
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the logits, by default float32")
    options.integers(parser, "--classes", [1, 3] if quick else [1, 20, 80, 365, 1203], "numbers of classes")
    options.batches(parser, quick)
    options.sizes(parser, quick)


def cases(args):
    size, classes = (64, 5) if args.quick else (800, 80)
    case = partial(LossCase, size=size, images=1, classes=classes, loss="focal", args=args)
    growth = (PLUGIN, DETECTRON2, LOWER_BOUND)
    base = f"{args.dtype}, {inputs.shape_name(size)}"
    return [
        *(case(f"losses ({base}, {classes} classes, 1 image)", loss, _sides(loss), loss=loss) for loss in LOSSES),
        *(case(f"classes ({base}, 1 image)", f"{k} classes", growth, classes=k) for k in args.classes),
        *(case(f"batch ({base}, {classes} classes)", f"{n} images", growth, images=n) for n in args.batches),
        *(
            case(f"size ({args.dtype}, {classes} classes, 1 image)", inputs.shape_name(s), growth, size=s)
            for s in args.sizes
        ),
    ]


def _sides(loss):
    # torchvision has focal loss with its own alpha and gamma alone.
    return (PLUGIN, DETECTRON2, *((TORCHVISION,) if loss == "focal" else ()), FVCORE, LOWER_BOUND)


class LossCase(Case):
    """Logits as the head starts with, about 0.04 % positive anchors and 0.1 % ignored ones."""

    warmup = 2  # fvcore's compiled function is compiled in its second run

    def __init__(self, group, name, implementations, *, size, images, classes, loss, args):
        super().__init__(group, name, implementations)
        self.size, self.images, self.classes, self.loss, self.args = size, images, classes, loss, args
        self.dtype, self.device = DTYPES[args.dtype], args.device
        self.lower_bounds = {impl: LOWER_BOUND for impl in implementations if impl != LOWER_BOUND}
        self.scale = images * A * classes * self._cells() * self.dtype.itemsize
        self.moved_bytes = 2 * self.scale  # logits read, gradient written

    def miniature(self):
        settings = {"images": self.images, "classes": min(self.classes, 80), "loss": self.loss, "args": self.args}
        return LossCase(self.group, self.name, self.implementations, size=64, **settings)

    def inherent_bytes(self, impl):
        return 0 if impl == LOWER_BOUND else self.scale

    def step(self, impl):
        logits, labels = self.logits, self.labels
        if impl == LOWER_BOUND:
            return copy_step(logits)
        make = {
            PLUGIN: self._plugin,
            DETECTRON2: partial(self._fvcore, suffix="_jit"),
            TORCHVISION: self._torchvision,
            FVCORE: partial(self._fvcore, suffix=""),
        }
        loss = make[impl](labels)

        def run():
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                value = loss(logits)
            value.backward()
            return value.detach()

        def prepare():
            for x in logits:
                x.grad = None

        def outcome(value):
            gradient = torch.cat([x.grad.flatten() for x in logits])
            # The many small elements of the background do not show beside the few large ones.
            return {"value": value, "gradient": gradient, "sum of |gradient|": gradient.abs().sum(dtype=torch.float64)}

        return Step(run, prepare, outcome)

    def check(self, impl, outcome, expected):
        for what, value in outcome.items():
            require_close(what, value, expected[what], TOLERANCES[self.dtype])

    def _cells(self):
        return sum(height * width for height, width in inputs.level_shapes(self.size))

    @cached_property
    def logits(self):
        """Leaves (N, A * K, Hl, Wl), about the logit of 0.01 that a class starts with."""
        random = inputs.generator()
        shapes = [(self.images, A * self.classes, *shape) for shape in inputs.level_shapes(self.size)]
        logits = [torch.randn(shape, generator=random).sub_(4.6).to(self.device, self.dtype) for shape in shapes]
        return [x.requires_grad_() for x in logits]

    @cached_property
    def labels(self):
        """int64 (N, R): as many positive anchors in every image, at random places."""
        random = inputs.generator(1)
        anchors = A * self._cells()
        positives, ignored = max(1, round(0.0004 * anchors)), max(1, round(0.001 * anchors))
        labels = torch.full((self.images, anchors), self.classes)
        for row in labels:
            places = torch.randperm(anchors, generator=random)
            row[places[:positives]] = torch.randint(self.classes, (positives,), generator=random)
            row[places[positives : positives + ignored]] = -1
        return labels.to(self.device)

    def _plugin(self, labels):
        cfg = get_cfg()
        add_retina_config(cfg)
        keys = {"CLS_LOSS": self.loss, "NUM_CLASSES": self.classes, "FOCAL_LOSS_ALPHA": ALPHA}
        cfg.merge_from_list([word for key, value in keys.items() for word in (f"MODEL.RETINANET.{key}", value)])
        cfg.merge_from_list(list(LOSSES[self.loss][0]))
        loss = build_classification_loss(cfg).to(self.device)
        targets = Targets(labels, torch.zeros(1, 1, 4, device=self.device).expand(*labels.shape, 4))
        context, normalizer = LossContext(_no_boxes), torch.tensor(NORMALIZER, device=self.device)
        return lambda logits: loss([per_anchor(x, self.classes) for x in logits], targets, context, normalizer)

    def _fvcore(self, labels, suffix):
        """As Detectron2's ``RetinaNet.losses`` does it, which takes the compiled function."""
        _, name, parameters = LOSSES[self.loss]
        function = getattr(fvcore, name + suffix)

        def loss(logits):
            flat = [permute_to_N_HWA_K(x, self.classes) for x in logits]
            counted = labels >= 0
            targets = F.one_hot(labels[counted], num_classes=self.classes + 1)[:, :-1]
            targets = targets.to(flat[0].dtype)
            value = function(cat(flat, dim=1)[counted], targets, alpha=ALPHA, reduction="sum", **parameters)
            return value / NORMALIZER

        return loss

    def _torchvision(self, labels):
        """Its own head's loss, a mean over positives and images; every image has as many positives."""
        head = RetinaNetClassificationHead(8, A, self.classes)
        is_class = (labels >= 0) & (labels < self.classes)
        count = int(is_class[0].sum())
        # Indices of boxes, one box a positive anchor; -1 background, -2 ignored.
        matches = torch.where(labels == -1, -2, -1)
        matches[is_class] = torch.arange(count, device=self.device).repeat(self.images)
        targets = [{"labels": row[mask]} for row, mask in zip(labels, is_class)]

        def loss(logits):
            flat = cat([permute_to_N_HWA_K(x, self.classes) for x in logits], dim=1)
            return head.compute_loss(targets, {"cls_logits": flat}, matches) * (count * self.images / NORMALIZER)

        return loss


def _no_boxes():
    raise AssertionError("none of these losses looks at boxes")


if __name__ == "__main__":
    from benchmarks.runner import main

    main("benchmarks.loss")
