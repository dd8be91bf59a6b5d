"""The class and box subnets (section 4, "Classification Subnet", "Box Regression Subnet").

Two towers of the same shape and separate parameters, each shared by all levels. The registry takes
heads with the same call: ``HEAD(cfg, input_shape)``, then ``head(features) -> logits, deltas``.
"""

import math

from detectron2.config import configurable
from detectron2.layers import CycleBatchNormList, get_norm
from detectron2.modeling.anchor_generator import build_anchor_generator
from fvcore.common.registry import Registry
from torch import nn

RETINANET_HEAD_REGISTRY = Registry("RETINANET_HEAD")


def build_retinanet_head(cfg, input_shape):
    """Build the head that ``cfg.MODEL.RETINANET.HEAD_NAME`` names for features of ``input_shape``."""
    return RETINANET_HEAD_REGISTRY.get(cfg.MODEL.RETINANET.HEAD_NAME)(cfg, input_shape)


@RETINANET_HEAD_REGISTRY.register()
class RetinaNetHead(nn.Module):
    """Predicts K logits and 4 box deltas for each of A anchors at every position of every level.

    Parameter names, initialization (Gaussian of standard deviation 0.01, bias 0; section 4.1) and numbers
    are those of Detectron2's head of the same name.
    """

    @configurable
    def __init__(self, *, input_shape, num_classes, num_anchors, conv_dims, norm="", prior_prob=0.01):
        """
        Args:
            input_shape: list of L ``ShapeSpec``, one a level, all with the same number of channels.
            num_classes: K, without background.
            num_anchors: A, anchors a cell.
            conv_dims: output channels of each 3x3 convolution of a tower.
            norm: normalization after each convolution of the towers, a name or a callable that
                ``detectron2.layers.get_norm`` takes. "BN" and "SyncBN" keep statistics of their own for
                each level and share the affine parameters; every other norm is shared by the levels.
            prior_prob: pi, the probability that a class starts with for every anchor. The bias of the last
                classification layer starts at -log((1 - pi) / pi) (section 4.1, "Initialization").

        Raises:
            ValueError: prior_prob outside (0, 1), levels with different channels, channels that GN's 32
                groups do not divide, unknown norm.
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

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    def _tower(self, in_channels, conv_dims, norm):
        layers = []
        for out_channels in conv_dims:
            layers.append(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
            if norm:
                layers.append(self._norm(norm, out_channels))
            layers.append(nn.ReLU())
            in_channels = out_channels
        return nn.Sequential(*layers)

    def _norm(self, norm, channels):
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
    def from_config(cls, cfg, input_shape):
        num_anchors = set(build_anchor_generator(cfg, input_shape).num_cell_anchors)
        if len(num_anchors) != 1:
            raise ValueError(
                "MODEL.ANCHOR_GENERATOR gives the levels different numbers of anchors a cell "
                f"({sorted(num_anchors)}), and the head is shared by all levels"
            )
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "num_anchors": num_anchors.pop(),
            "conv_dims": [input_shape[0].channels] * cfg.MODEL.RETINANET.NUM_CONVS,
            "norm": cfg.MODEL.RETINANET.NORM,
            "prior_prob": cfg.MODEL.RETINANET.PRIOR_PROB,
        }

    def forward(self, features):
        """
        Args:
            features: list of L tensors (N, C, Hl, Wl), from high to low resolution.

        Returns:
            logits: list of L tensors (N, A * K, Hl, Wl), channels anchor-major.
            deltas: list of L tensors (N, A * 4, Hl, Wl): (dx, dy, dw, dh) of each anchor.
        """
        assert len(features) == self._num_levels, (len(features), self._num_levels)
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        deltas = [self.bbox_pred(self.bbox_subnet(x)) for x in features]
        return logits, deltas


def per_anchor(prediction, dim):
    """View a level of the head's output by anchor: (N, A * D, H, W) -> (N, H, W, A, D), without a copy.

    The order (H, W, A) is that of the anchors of ``detectron2.modeling.anchor_generator``.
    """
    return prediction.unflatten(1, (-1, dim)).permute(0, 3, 4, 1, 2)
