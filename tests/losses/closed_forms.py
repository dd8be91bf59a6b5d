"""The losses of section 3 as formulas in float64: value and derivative with respect to x_t, elementwise."""

from collections import namedtuple
from functools import partial

import numpy as np
import torch

from retina_plugin import losses


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))  # precise at both ends


def cross_entropy(x_t):
    return np.logaddexp(0, -x_t), -sigmoid(-x_t)


def focal(x_t, gamma):
    p_t, rest, log_p_t = sigmoid(x_t), sigmoid(-x_t), -np.logaddexp(0, -x_t)
    return -(rest**gamma) * log_p_t, rest**gamma * (gamma * p_t * log_p_t - rest)


def focal_star(x_t, gamma, beta):
    shifted = gamma * x_t + beta
    return np.logaddexp(0, -shifted) / gamma, -sigmoid(-shifted)


def hinge(x_t, margin):
    p_t = sigmoid(x_t)
    return np.maximum(0, margin - p_t), np.where(p_t < margin, -p_t * sigmoid(-x_t), 0)


Loss = namedtuple("Loss", "function module formula")
FAMILY = {
    "cross_entropy": Loss(losses.sigmoid_cross_entropy_loss, losses.SigmoidCrossEntropyLoss, cross_entropy),
    "focal": Loss(losses.sigmoid_focal_loss, losses.SigmoidFocalLoss, focal),
    "focal_star": Loss(losses.sigmoid_focal_star_loss, losses.SigmoidFocalStarLoss, focal_star),
    "hinge": Loss(losses.sigmoid_hinge_loss, losses.SigmoidHingeLoss, hinge),
}
FUSED = ("cross_entropy", "focal", "focal_star")
FAMILY |= {
    f"{name}, plain": Loss(partial(loss.function, fused=False), partial(loss.module, fused=False), loss.formula)
    for name, loss in FAMILY.items()
    if name in FUSED
}
SETTINGS = {
    "cross_entropy": [{}],
    "focal": [{"gamma": gamma} for gamma in (0.0, 0.3, 0.5, 1.0, 2.0, 5.0)],
    "focal_star": [{"gamma": gamma, "beta": beta} for gamma, beta in ((2.0, 1.0), (4.0, 0.0), (0.3, -1.5), (5.0, 2.0))],
    "hinge": [{"margin": margin} for margin in (0.5, 0.05, 0.9, 1.0)],
}
SETTINGS |= {f"{name}, plain": SETTINGS[name] for name in FUSED}
# One set of parameters for each loss, where the property at hand does not depend on them.
TYPICAL = [
    ("cross_entropy", {}),
    ("focal", {"gamma": 2.0}),
    ("focal_star", {"gamma": 2.0, "beta": 1.0}),
    ("hinge", {"margin": 0.5}),
]
TYPICAL += [(f"{name}, plain", settings) for name, settings in TYPICAL if name in FUSED]


def closed_form(name, logits, labels, *, alpha=None, scores=None, **settings):
    """Value and gradient, both float64 (..., K), of the loss of that name in FAMILY; the loss is the value's sum.

    With scores (...), an anchor's own class has the loss s alpha f(x) + (1 - s) (1 - alpha) f(-x).
    """
    x, labels = logits.detach().double().numpy(), labels.numpy()[..., None]
    is_class = labels == np.arange(x.shape[-1])
    positive, negative = (1.0, 1.0) if alpha is None else (np.asarray(alpha, float), 1 - np.asarray(alpha, float))
    s = 1.0 if scores is None else np.where(is_class, scores.double().numpy()[..., None], 0.0)
    as_positive, as_negative = np.where(is_class, s, 0.0) * positive, np.where(is_class, 1 - s, 1.0) * negative
    value, derivative = FAMILY[name].formula(x, **settings)
    mirrored, mirrored_derivative = FAMILY[name].formula(-x, **settings)
    value = as_positive * value + as_negative * mirrored
    gradient = as_positive * derivative - as_negative * mirrored_derivative
    return np.where(labels >= 0, value, 0), np.where(labels >= 0, gradient, 0)


def random_case(num_anchors=400, num_classes=7, scale=4.0, margin=None, dtype=torch.float32):
    """Logits (num_anchors, num_classes) that ask for a gradient, and labels of every kind.

    Where there is a margin on p_t, at which the gradient jumps, no p_t lies so close to it that rounding decides.
    """
    logits = torch.randn(num_anchors, num_classes, dtype=dtype) * scale
    if margin is not None and margin < 1:
        kink = abs(np.log(margin / (1 - margin)))
        logits[(logits.abs() - kink).abs() < 1e-3] += 0.01
    labels = torch.randint(-1, num_classes + 1, (num_anchors,))
    labels[:3] = torch.tensor([-1, 0, num_classes])
    return logits.requires_grad_(), labels


def value_and_gradient(loss, logits):
    """The 0-dim loss, detached, and its gradient."""
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def call_module(module, logits, labels, normalizer=1.0, *, scores=None, boxes=None):
    """Call a loss module with the tensors of each level, (N, ..., K) and (N, ...), or (V, K) and (V,) of one image.

    Without boxes, a module that has them decoded fails.
    """

    def flatten(values):
        return torch.cat([y.flatten(1) if x.dim() > 2 else y[None] for x, y in zip(logits, values)], dim=1)

    def decode_boxes():
        assert boxes is not None, "a loss that does not look at boxes had them decoded"
        return boxes

    labels, scores = flatten(labels), None if scores is None else flatten(scores)
    targets = losses.Targets(labels, torch.zeros(*labels.shape, 4), scores)
    by_level = [x if x.dim() > 2 else x[None] for x in logits]
    return module(by_level, targets, losses.LossContext(decode_boxes), normalizer)
