"""Whole detectors as implementations: who, in which setting, on which inputs."""

from functools import cached_property
from typing import NamedTuple

import torch

from benchmarks import inputs, models, torchvision_model
from benchmarks.case import Case

PLUGIN, DETECTRON2, TORCHVISION, CONVOLUTIONS = "plugin", "Detectron2", "torchvision", "lower bound: convolutions"


class Setting(NamedTuple):
    """How a detector runs.

    Attributes:
        name: for the table.
        keys: KEY, VALUE, ... of the plugin's configuration.
        dtype: what the convolutions compute in, by ``torch.autocast`` where it is not float32.
    """

    name: str
    keys: tuple = ()
    dtype: torch.dtype = torch.float32


PLAIN = Setting("fp32")
_FAST = ("MODEL.CHANNELS_LAST", True, "MODEL.BACKBONE.FOLD_FROZEN_BN", True)
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def settings(device):
    """The settings that the plugin is measured in.

    In training, the benchmark autocasts as ``SOLVER.AMP.PRECISION`` lets the trainer do.
    """
    precisions = ("bf16", "fp16") if device.type == "cuda" else ("bf16",)
    half = [Setting(f"{name} fast", (*_FAST, "TEST.PRECISION", name), _HALF[name]) for name in precisions]
    return [PLAIN, Setting("fp32 fast", _FAST), *half]


def all_sides(device):
    """Every detector in every setting that it has, as pairs of detector and setting."""
    half = "fp16" if device.type == "cuda" else "bf16"  # on a GPU, what Detectron2's own mixed precision takes
    return [
        (DETECTRON2, PLAIN),
        *((PLUGIN, setting) for setting in settings(device)),
        (DETECTRON2, Setting(half, dtype=_HALF[half])),
        (TORCHVISION, PLAIN),
        *((CONVOLUTIONS, setting) for setting in settings(device)),
    ]


def few_sides(device):
    """What is compared as images grow in number and size: the plugin in fp16 on a GPU, where every one has it."""
    name = "fp16 fast" if device.type == "cuda" else "fp32 fast"
    return [(DETECTRON2, PLAIN), *((PLUGIN, setting) for setting in settings(device) if setting.name == name)]


class DetectorCase(Case):
    """Detectors on a batch of images with 20 boxes each.

    An implementation is a pair of detector and setting. That of :data:`CONVOLUTIONS` is backbone and head of the
    plugin's detector alone.
    """

    reference = f"{DETECTRON2}, {PLAIN.name}"

    def __init__(self, group, name, implementations, *, size, images, network, device):
        """
        Args:
            implementations: list of (detector, ``Setting``).
            size: shorter side of the images.
            images: N.
            network: KEY, VALUE, ... of all implementations.
            device: a ``torch.device``.
        """
        self.pairs = {f"{detector}, {setting.name}": (detector, setting) for detector, setting in implementations}
        super().__init__(group, name, self.pairs)
        self.size, self.images, self.network, self.device = size, images, network, device
        self.lower_bounds = {impl: lower_bound for impl in self.pairs if (lower_bound := self._lower_bound(impl))}
        height, width = inputs.picture_shape(size)
        self.scale = 4 * images * 3 * height * width

    def miniature(self):
        smaller = {"size": 64, "images": 1, "network": self.network, "device": self.device}
        return type(self)(self.group, self.name, self.pairs.values(), **smaller)

    def obstacle(self, impl):
        bf16 = self.pairs[impl][1].dtype == torch.bfloat16
        if self.device.type == "cpu" and bf16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return "this CPU has no instructions for bf16 and would take many times as long as in fp32"
        return None

    def model(self, impl):
        """The detector of an implementation."""
        detector, setting = self.pairs[impl]
        state = models.weights(self.network)
        if detector == TORCHVISION:
            return torchvision_model.build(models.detectron2_config(self.device, self.network), state, self.size)
        make_config = models.detectron2_config if detector == DETECTRON2 else models.plugin_config
        return models.build(make_config(self.device, (*self.network, *setting.keys)), state)

    def autocast(self, impl):
        """The autocast region of an implementation."""
        dtype = self.pairs[impl][1].dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    @cached_property
    def batch(self):
        """Inputs of Detectron2 and the plugin: the images on the device, the boxes on the CPU."""
        classes = models.plugin_config("cpu", self.network).MODEL.RETINANET.NUM_CLASSES
        batch = inputs.batch(self.size, self.images, boxes=20, num_classes=classes)
        return [{**x, "image": x["image"].to(self.device)} for x in batch]

    @cached_property
    def torchvision_images(self):
        """The same images as torchvision takes them: float (3, H, W) in 0..1, on the device."""
        return [x["image"].float() / 255 for x in self.batch]

    def _lower_bound(self, impl):
        detector, setting = self.pairs[impl]
        if detector == CONVOLUTIONS:
            return None
        lower_bounds = {name: s for name, (d, s) in self.pairs.items() if d == CONVOLUTIONS}
        # Another library's convolutions are those of the plugin in the same precision.
        same = [name for name, s in lower_bounds.items() if s == setting] or [
            name for name, s in lower_bounds.items() if s.dtype == setting.dtype
        ]
        return same[0] if same else None


def convolutions(model, images):
    """What backbone and head make of normalized images (N, 3, H, W): logits and deltas of all levels, as a list."""
    features = model.backbone(images)
    logits, deltas = model.head([features[f] for f in model.head_in_features])[:2]
    return [*logits, *deltas]
