"""The classification and box subnets (section 4, "Classification Subnet", "Box Regression Subnet").

N images, L levels of Hl x Wl cells, A anchors a cell, K classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from detectron2.config import CfgNode, configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, get_norm
from detectron2.modeling.anchor_generator import build_anchor_generator
from torch import Tensor, nn

from retina_plugin.config.registries import RETINANET_HEAD_REGISTRY
from retina_plugin.modeling.scripting import ScriptableHead

Norm = str | Callable[[int], nn.Module]  # what ``detectron2.layers.get_norm`` takes


class HeadOutput(NamedTuple):
    """The predictions of all levels.

    Attributes:
        logits: list of L tensors (N, A * K, Hl, Wl), channels anchor-major.
        deltas: list of L tensors (N, A * 4, Hl, Wl), the deltas of each anchor for the box coder.
        extra: further predictions by name, for a project's own losses or post-processing.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    extra: Mapping[str, Any] = MappingProxyType({})


class Head(Protocol):
    """Predicts from the features of L levels, tensors (N, C, Hl, Wl) from high to low resolution; an ``nn.Module``.

    ``RETINANET_HEAD_REGISTRY`` has callables ``f(cfg, input_shape) -> Head``, input_shape being L ``ShapeSpec``;
    ``MODEL.RETINANET.HEAD_NAME`` names one. A head may return a pair (logits, deltas) as well.
    """

    def __call__(self, features: list[Tensor]) -> HeadOutput | tuple[list[Tensor], list[Tensor]]: ...


def as_head_output(output: HeadOutput | tuple[list[Tensor], list[Tensor]]) -> HeadOutput:
    """Convert what a :class:`Head` returned to a :class:`HeadOutput`."""
    return HeadOutput(*output)


def build_retinanet_head(cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> nn.Module:
    """Build the head that ``MODEL.RETINANET.HEAD_NAME`` names for features of ``input_shape``."""
    return RETINANET_HEAD_REGISTRY.get(cfg.MODEL.RETINANET.HEAD_NAME)(cfg, input_shape)


@RETINANET_HEAD_REGISTRY.register()
class RetinaNetHead(nn.Module):
    """Predicts K logits and 4 box deltas for each of A anchors at every position of every level.

    Parameter names, initialization (Gaussian of standard deviation 0.01, bias 0; section 4.1) and numbers
    are those of Detectron2's head of the same name.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        conv_dims: Sequence[int],
        norm: Norm = "",
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            input_shape: L levels, all with the same number of channels.
            num_classes: K, without background.
            num_anchors: A, anchors a cell.
            conv_dims: output channels of each 3x3 convolution of a tower.
            norm: after each convolution of the towers, "" for none. "BN" and "SyncBN" have statistics of each level and
                share the affine parameters; all levels share any other norm.
            prior_prob: pi, the probability of each class that training starts with: the bias of ``cls_score`` starts at
                -log((1 - pi) / pi) (section 4.1, "Initialization").

        Raises:
            ValueError: prior_prob outside (0, 1), levels with different channels, unknown norm, GN without a multiple
                of 32 channels.
        """
        super().__init__()
        if not 0 < prior_prob < 1:
            raise ValueError(f"prior_prob is a probability in (0, 1), got {prior_prob}")
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ValueError(f"the head is shared by all levels, but they have {sorted(channels)} channels")
        self._num_levels = len(input_shape)
        in_channels = channels.pop()

        self.cls_subnet = self._tower(in_channels, conv_dims, norm)
        self.bbox_subnet = self._tower(in_channels, conv_dims, norm)
        out_channels = conv_dims[-1] if conv_dims else in_channels
        self.cls_score = nn.Conv2d(out_channels, num_anchors * num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(out_channels, num_anchors * 4, kernel_size=3, padding=1)

        prior_bias = -math.log((1 - prior_prob) / prior_prob)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.normal_(module.weight, std=0.01)
                nn.init.constant_(module.bias, prior_bias if module is self.cls_score else 0)

    def _tower(self, in_channels: int, conv_dims: Sequence[int], norm: Norm) -> nn.Sequential:
        layers: list[nn.Module] = []
        for out_channels in conv_dims:
            layers.append(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
            if norm:
                layers.append(self._norm(norm, out_channels))
            layers.append(nn.ReLU())
            in_channels = out_channels
        return nn.Sequential(*layers)

    def _norm(self, norm: Norm, channels: int) -> nn.Module:
        if norm in ("BN", "SyncBN"):
            # The levels have different statistics; the list cycles through one norm a level.
            bn_class = nn.BatchNorm2d if norm == "BN" else nn.SyncBatchNorm
            return CycleBatchNormList(length=self._num_levels, bn_class=bn_class, num_features=channels)
        if norm == "GN" and channels % 32:
            raise ValueError(f"NORM 'GN' splits channels into 32 groups, which {channels} channels are not")
        try:
            return get_norm(norm, channels)
        except KeyError:
            raise ValueError(f"MODEL.RETINANET.NORM '{norm}' is no norm that Detectron2 knows") from None

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, object]:
        num_anchors = set(build_anchor_generator(cfg, input_shape).num_cell_anchors)
        if len(num_anchors) != 1:
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR has {sorted(num_anchors)} anchors a cell, but all levels share the head: give "
                "every level the same number"
            )
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "num_anchors": num_anchors.pop(),
            "conv_dims": [input_shape[0].channels] * cfg.MODEL.RETINANET.NUM_CONVS,
            "norm": cfg.MODEL.RETINANET.NORM,
            "prior_prob": cfg.MODEL.RETINANET.PRIOR_PROB,
        }

    def __prepare_scriptable__(self) -> nn.Module:
        return ScriptableHead(self) if type(self).forward is RetinaNetHead.forward else self

    def forward(self, features: list[Tensor]) -> HeadOutput:
        """See :meth:`Head.__call__`."""
        assert len(features) == self._num_levels, (len(features), self._num_levels)
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        deltas = [self.bbox_pred(self.bbox_subnet(x)) for x in features]
        return HeadOutput(logits, deltas)


def per_anchor(prediction: Tensor, dim: int) -> Tensor:
    """View a level of the head's output by anchor: (N, A * D, H, W) -> (N, H, W, A, D), without a copy.

    The order (H, W, A) is that of the anchors of ``detectron2.modeling.anchor_generator``.
    """
    n, channels, h, w = prediction.shape
    return prediction.view(n, channels // dim, dim, h, w).permute(0, 3, 4, 1, 2)
