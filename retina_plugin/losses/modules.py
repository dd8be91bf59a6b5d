"""The losses of :mod:`retina_plugin.losses.functional` as modules, registered for ``MODEL.RETINANET.CLS_LOSS``."""

import numbers
from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from retina_plugin.losses import functional
from retina_plugin.losses.alpha import Alpha, check_alpha
from retina_plugin.losses.functional import PointwiseLoss, sum_over_levels
from retina_plugin.losses.fused import SigmoidLossFamily
from retina_plugin.losses.registry import LossContext, register_classification_loss
from retina_plugin.losses.targets import Targets


class MultiLevelLoss(nn.Module):
    """Sums a pointwise loss over levels, anchors and classes; a :class:`~.registry.ClassificationLoss`.

    The module and its subclasses have the parameters of :mod:`retina_plugin.losses.functional`, and raise its errors.
    ``settings`` are the parameters of the pointwise loss, for display.
    """

    def __init__(self, loss: PointwiseLoss, *, alpha: Alpha, fused: bool = True, **settings: float) -> None:
        super().__init__()
        self.loss, self.fused, self.settings = loss, fused, settings
        self.grad_scale = torch.ones(())  # see FusedLoss; a forecast, which changes no result
        self.register_buffer("_alphas", None, persistent=False)  # so that they move to the device of the logits
        self.alpha = alpha

    @property
    def alpha(self) -> Alpha:
        """The weight of positives, a float or None, or a tensor of one for each class."""
        return self._alpha if self._alphas is None else self._alphas

    @alpha.setter
    def alpha(self, alpha: Alpha) -> None:
        check_alpha(alpha)
        self._alpha = float(alpha) if isinstance(alpha, numbers.Real) else None
        of_classes = None if alpha is None or self._alpha is not None else alpha
        device = self.grad_scale.device
        self._alphas = None if of_classes is None else torch.as_tensor(of_classes, dtype=torch.float32, device=device)

    def forward(
        self, logits: Sequence[Tensor], targets: Targets, context: LossContext, normalizer: Tensor | float
    ) -> Tensor:
        if self.grad_scale.device != logits[0].device:
            self.grad_scale = torch.ones((), device=logits[0].device)
            self.to(logits[0].device)
        return sum_over_levels(
            self.loss,
            logits,
            targets.labels_by_level(logits),
            alpha=self.alpha,
            fused=self.fused,
            scores=targets.scores_by_level(logits),
            divisor=normalizer,
            grad_scale=self.grad_scale,
        )

    def extra_repr(self) -> str:
        alpha = self.alpha.tolist() if isinstance(self.alpha, Tensor) else self.alpha
        shown = {"alpha": alpha, **self.settings, "fused": self.fused}
        return ", ".join(f"{name}={value}" for name, value in shown.items())


class SigmoidFocalLoss(MultiLevelLoss):
    """:func:`~.functional.sigmoid_focal_loss` summed over levels."""

    def __init__(self, *, alpha: Alpha = 0.25, gamma: float = 2.0, fused: bool = True) -> None:
        super().__init__(functional.pointwise_focal(gamma), alpha=alpha, fused=fused, gamma=gamma)

    @property
    def gamma(self) -> float:
        """The focusing parameter."""
        return self.settings["gamma"]

    @gamma.setter
    def gamma(self, gamma: float) -> None:
        self.loss = functional.pointwise_focal(gamma)
        self.settings["gamma"] = gamma


class SigmoidCrossEntropyLoss(MultiLevelLoss):
    """:func:`~.functional.sigmoid_cross_entropy_loss` summed over levels."""

    def __init__(self, *, alpha: Alpha = None, fused: bool = True) -> None:
        super().__init__(SigmoidLossFamily(), alpha=alpha, fused=fused)


class SigmoidFocalStarLoss(MultiLevelLoss):
    """:func:`~.functional.sigmoid_focal_star_loss` summed over levels."""

    def __init__(self, *, alpha: Alpha = None, gamma: float = 2.0, beta: float = 1.0, fused: bool = True) -> None:
        loss = functional.pointwise_focal_star(gamma, beta)
        super().__init__(loss, alpha=alpha, fused=fused, gamma=gamma, beta=beta)


class SigmoidHingeLoss(MultiLevelLoss):
    """:func:`~.functional.sigmoid_hinge_loss` summed over levels."""

    def __init__(self, *, alpha: Alpha = None, margin: float = 0.5) -> None:
        super().__init__(functional.PointwiseHinge(margin), alpha=alpha, fused=False, margin=margin)


@register_classification_loss()
def focal(cfg: CfgNode) -> SigmoidFocalLoss:
    keys = cfg.MODEL.RETINANET
    return SigmoidFocalLoss(alpha=alpha_from_config(cfg), gamma=keys.FOCAL_LOSS_GAMMA, fused=keys.FUSED_LOSS)


@register_classification_loss()
def cross_entropy(cfg: CfgNode) -> SigmoidCrossEntropyLoss:
    return SigmoidCrossEntropyLoss(alpha=alpha_from_config(cfg), fused=cfg.MODEL.RETINANET.FUSED_LOSS)


@register_classification_loss("FOCAL_STAR_GAMMA", "FOCAL_STAR_BETA")
def focal_star(cfg: CfgNode) -> SigmoidFocalStarLoss:
    keys = cfg.MODEL.RETINANET
    return SigmoidFocalStarLoss(
        alpha=alpha_from_config(cfg), gamma=keys.FOCAL_STAR_GAMMA, beta=keys.FOCAL_STAR_BETA, fused=keys.FUSED_LOSS
    )


@register_classification_loss("HINGE_MARGIN")
def hinge(cfg: CfgNode) -> SigmoidHingeLoss:
    return SigmoidHingeLoss(alpha=alpha_from_config(cfg), margin=cfg.MODEL.RETINANET.HINGE_MARGIN)


def alpha_from_config(cfg: CfgNode) -> float | list[float] | None:
    """Read the weight of the positive class from a configuration.

    FOCAL_LOSS_ALPHA_PER_CLASS holds K numbers, or is empty; then FOCAL_LOSS_ALPHA holds for every class, and -1.0 (as
    in Detectron2) or null turns the weight off.

    Raises:
        ValueError: FOCAL_LOSS_ALPHA_PER_CLASS has another length than K.
    """
    keys = cfg.MODEL.RETINANET
    alpha, per_class, num_classes = keys.FOCAL_LOSS_ALPHA, keys.FOCAL_LOSS_ALPHA_PER_CLASS, keys.NUM_CLASSES
    if not per_class:
        return None if alpha is None or alpha == -1 else alpha
    if len(per_class) != num_classes:
        raise ValueError(
            f"MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS has {len(per_class)} numbers for the {num_classes} classes of "
            "MODEL.RETINANET.NUM_CLASSES; give one a class, in their order, or none"
        )
    return list(per_class)
