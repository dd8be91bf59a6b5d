"""A small detector, its images and its training step, the same in every process that builds them from a seed."""

import retina_plugin  # first: the processes that tests start import this file alone

import torch  # isort: skip
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from retina_plugin.engine.step import TrainingStep


@BACKBONE_REGISTRY.register()
class SmallPyramid(Backbone):
    """A convolution a level, which halves the resolution of the one before. ``MODEL.FPN.NORM`` is its norm."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        channels = cfg.MODEL.FPN.OUT_CHANNELS
        self.stem = nn.Conv2d(3, channels, 7, stride=4, padding=3)
        self.levels = nn.ModuleList(
            Conv2d(channels, channels, 3, stride=2, padding=1, norm=get_norm(cfg.MODEL.FPN.NORM, channels))
            for _ in range(3)
        )
        self._out_features = ["p3", "p4", "p5"]
        self._out_feature_strides = {"p3": 8, "p4": 16, "p5": 32}
        self._out_feature_channels = dict.fromkeys(self._out_features, channels)

    @property
    def size_divisibility(self):
        return 32

    def forward(self, images):
        x, outputs = F.relu(self.stem(images)), {}
        for name, level in zip(self._out_features, self.levels):
            x = outputs[name] = F.relu(level(x))
        return outputs


OPTS = (
    *("MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "FocalRetinaNet", "MODEL.BACKBONE.NAME", "SmallPyramid"),
    *("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"]),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.NUM_CLASSES", 3),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16.0], [32.0], [64.0]]),
    *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0, 2.0]]),
    *("MODEL.PIXEL_STD", [58.0, 57.0, 57.0], "SOLVER.BASE_LR", 0.01),
)


def make_cfg(*opts):
    cfg = get_cfg()
    retina_plugin.add_retina_config(cfg)
    retina_plugin.merge_config(cfg, opts=[*OPTS, *opts])
    return cfg


def make_model(cfg, seed):
    """In float64, where the order of a sum does not decide on which side of 0 a ReLU or an L1 error lies."""
    torch.manual_seed(seed)
    return build_model(cfg).double().train()


def make_image(seed, index, num_boxes, size=(64, 64)):
    generator = torch.Generator().manual_seed(seed + index)
    corner = torch.rand(num_boxes, 2, generator=generator) * 30
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.cat([corner, corner + 8 + 20 * torch.rand(num_boxes, 2, generator=generator)], 1))
    instances.gt_classes = torch.randint(0, 3, (num_boxes,), generator=generator)
    pixels = torch.randint(0, 256, (3, *size), generator=generator).float()
    return {"image": pixels, "instances": instances, "file_name": f"street/{index}.jpg", "image_id": index}


def make_batches(seed, num_batches, boxes=(3, 0, 2, 1)):
    return [[make_image(seed, len(boxes) * b + i, n) for i, n in enumerate(boxes)] for b in range(num_batches)]


def make_step(cfg, model, batches):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, cfg.SOLVER.BASE_LR, momentum=0.9, weight_decay=1e-4)
    return TrainingStep(model, batches, optimizer, cfg)


def run(step, num_steps, first=0):
    """Runs steps as ``TrainerBase.train`` does; returns what they logged, a dict a step."""
    logged = []
    with EventStorage(first) as storage:
        for step.iter in range(first, first + num_steps):
            storage.iter = step.iter
            step.run_step()
            logged.append({k: v for k, (v, i) in storage.latest().items() if i == step.iter})
    return logged


def state_of(step):
    """Weights, buffers and momenta."""
    momenta = {f"momentum {i}": s["momentum_buffer"] for i, s in step.optimizer.state_dict()["state"].items()}
    state = {name.removeprefix("module."): value for name, value in step.model.state_dict().items()}
    return {name: value.clone() for name, value in {**state, **momenta}.items()}


def gradients_of(model):
    return {n.removeprefix("module."): p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
