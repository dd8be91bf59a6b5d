"""Finds the parameters of a backbone that only levels need which the head does not use."""

import logging
from collections.abc import Sequence

import torch
from detectron2.modeling import Backbone

from retina_plugin.core.text import list_some


def freeze_unused(backbone: Backbone, features: Sequence[str], num_channels: int) -> list[str]:
    """Freeze the parameters that get no gradient from the used features, as those of P6 and P7 with P3 to P5 alone.

    Without a gradient, they would stay as they are anyway; ``DistributedDataParallel`` would wait for it, and fail. A
    line in the log names them.

    Args:
        backbone: on the CPU or another device, with any output.
        features: the names of the used ones.
        num_channels: of an image.

    Returns:
        The names of the parameters that were frozen; empty if all features are used, or if the backbone cannot run on a
        small blank image.
    """
    shapes = backbone.output_shape()
    named = [(name, p) for name, p in backbone.named_parameters() if p.requires_grad]
    if set(features) >= set(shapes) or not named:
        return []
    side = max(backbone.size_divisibility, *(shape.stride for shape in shapes.values()), 64)
    was_training = backbone.training
    backbone.eval()  # statistics of norms stay as they are
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            made = backbone(torch.zeros(1, num_channels, side, side, device=named[0][1].device))
            total = sum(made[name].sum() for name in features)
            gradients = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    except Exception:  # a backbone of any kind: what it needs to run is not known here
        return []
    finally:
        backbone.train(was_training)
    unused = [(name, p) for (name, p), gradient in zip(named, gradients) if gradient is None]
    for _, parameter in unused:
        parameter.requires_grad_(False)
    frozen = [name for name, _ in unused]
    if frozen:
        logging.getLogger(__name__).warning(
            "MODEL.RETINANET.IN_FEATURES %s does not use %d parameters of the backbone, which are not trained: %s",
            *(list(features), len(frozen), list_some(frozen, 4)),
        )
    return frozen
