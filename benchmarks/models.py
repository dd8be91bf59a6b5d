"""Detectron2's own RetinaNet and the plugin's, with the same configuration and the same lively weights."""

import math
from functools import lru_cache
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn
from torch.overrides import TorchFunctionMode

from benchmarks import inputs
from retina_plugin import add_retina_config, merge_config

CONFIG = Path(__file__).parents[1] / "configs" / "retinanet_R50.yaml"
# KEY, VALUE, ... of a network for smoke tests.
SMALL = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RETINANET.NUM_CLASSES", 5)
# Pairs of anchor and class of unit_batch() that score above the threshold of 0.05. With these weights, an 800 x 1344
# image has some 7000, as many as with a trained detector.
_CANDIDATES = 500


def plugin_config(device, overrides=()):
    """``configs/retinanet_R50.yaml`` with KEY, VALUE, ... merged over it."""
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, str(CONFIG), ["MODEL.DEVICE", str(device), *overrides])
    return cfg


def detectron2_config(device, overrides=()):
    """The same for Detectron2's own RetinaNet."""
    cfg = plugin_config(device, overrides)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    return cfg


def skeleton(cfg):
    """Build the detector of a configuration, with weights that are not defined."""
    with _NoInitialization():
        return build_model(cfg)


def build(cfg, state):
    """Build the detector of a configuration with given weights.

    Args:
        cfg: of :func:`plugin_config` or :func:`detectron2_config`.
        state: of :func:`weights`, for the same network.
    """
    model = skeleton(cfg)
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert set(missing) <= {"loss_normalizer.ema"}, missing  # no weight, and not drawn
    return model


def unit_batch():
    """The image on which activations have unit size. The top levels of a smaller one have too little to measure."""
    return inputs.batch(320, images=1, boxes=1, num_classes=1)


@lru_cache(maxsize=1)
def weights(network=()):
    """Random weights with what training would have given them, the same in every process.

    The frozen norms have the statistics of their inputs, the levels of the pyramid unit size, the predictions spread:
    random weights as they are drawn let activations grow or fade from layer to layer and make all scores equal.

    Args:
        network: KEY, VALUE, ... that differ from the configuration.

    Returns:
        dict of name -> tensor on the CPU, with the names of Detectron2's RetinaNet.
    """
    random = inputs.generator()
    model = skeleton(detectron2_config("cpu", network))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.normal_(std=math.sqrt(2 / layer.weight[0].numel()), generator=random)
                if layer.bias is not None:
                    layer.bias.zero_()
        images = model.preprocess_image(unit_batch()).tensor
        _spread_predictions(model, _normalize_activations(model, images))
    return model.state_dict()


class _NoInitialization(TorchFunctionMode):
    """Leaves weights undefined that are overwritten anyway: drawing them takes most of the time to build a model."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _normalize_activations(model, images):
    """Returns the features that the head sees then."""

    def take_statistics(norm, arguments):
        norm.running_mean.copy_(arguments[0].mean(dim=(0, 2, 3)))
        variance = arguments[0].var(dim=(0, 2, 3))
        norm.running_var.copy_(variance.clamp(min=0.1 * variance.mean()))

    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(take_statistics) for norm in norms]
    features = model.backbone(images)
    for hook in hooks:
        hook.remove()
    spread = {level: feature.std() for level, feature in features.items()}
    for i in (3, 4, 5):
        model.backbone.get_submodule(f"fpn_output{i}").weight.div_(spread[f"p{i}"])
    model.backbone.top_block.p6.weight.div_(spread["p6"])
    model.backbone.top_block.p7.weight.mul_(spread["p6"] / spread["p7"])  # P7 is made from ReLU(P6)
    return [features[level] / spread[level] for level in model.head_in_features]


def _spread_predictions(model, features):
    # No bias so far.
    logits, deltas = (torch.cat([x.flatten() for x in outputs]) for outputs in model.head(features)[:2])
    model.head.bbox_pred.weight.mul_(0.3 / deltas.std())
    model.head.cls_score.weight.div_(logits.std())
    threshold = (logits / logits.std()).kthvalue(len(logits) - _CANDIDATES).values
    model.head.cls_score.bias.fill_(math.log(0.05 / 0.95) - threshold)
