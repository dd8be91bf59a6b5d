"""Classification losses by name: what a loss is called with, how it is registered and built."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from retina_plugin.config.registries import CLASSIFICATION_LOSS_REGISTRY
from retina_plugin.losses.targets import Targets

Builder = TypeVar("Builder", bound=Callable[[CfgNode], nn.Module])


@dataclass(frozen=True)
class LossContext:
    """Gives a loss what it may need beyond logits and targets.

    Attributes:
        decode_boxes: decodes the predicted boxes at each call: L float32 tensors (N, Hl, Wl, A, 4), XYXY in pixels,
            without gradient.
    """

    decode_boxes: Callable[[], list[Tensor]]


class ClassificationLoss(Protocol):
    """The interface of the modules that functions in ``CLASSIFICATION_LOSS_REGISTRY`` build."""

    def __call__(
        self, logits: Sequence[Tensor], targets: Targets, context: LossContext, normalizer: Tensor | float
    ) -> Tensor:
        """Compute the sum over images, anchors and classes, divided by ``normalizer``, as a 0-dim float32 tensor.

        Args:
            logits: L float tensors (N, Hl, Wl, A, K), views of the head's output in its memory order.
            normalizer: divisor > 0, a number or a 0-dim float32 tensor without gradient.
        """


def register_classification_loss(*keys: str) -> Callable[[Builder], Builder]:
    """Register a function ``f(cfg) -> nn.Module`` as the classification loss of the function's name.

    Args:
        keys: the loss's own keys in MODEL.RETINANET, kept as the function's attribute ``reads_keys``. The configuration
            checks report such a key if it is set and the chosen loss does not read it. A loss that is registered with
            ``CLASSIFICATION_LOSS_REGISTRY.register()`` may read any key.
    """

    def register(build: Builder) -> Builder:
        vars(build).update(reads_keys=keys)
        CLASSIFICATION_LOSS_REGISTRY.register(build)
        return build

    return register


def build_classification_loss(cfg: CfgNode) -> nn.Module:
    """Build the loss that ``cfg.MODEL.RETINANET.CLS_LOSS`` names.

    Raises:
        KeyError: no loss of that name is registered.
        ValueError: a parameter of the loss is out of its range, or not a number.
    """
    build = CLASSIFICATION_LOSS_REGISTRY.get(cfg.MODEL.RETINANET.CLS_LOSS)
    try:
        return build(cfg)
    except TypeError as error:  # YAML's null passes the configuration's type check for numbers
        raise ValueError(f"MODEL.RETINANET.CLS_LOSS {cfg.MODEL.RETINANET.CLS_LOSS}: {error}") from error
