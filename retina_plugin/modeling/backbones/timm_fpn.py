"""A backbone of timm with a feature pyramid on levels P3 to P7. Needs the package ``timm``."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from retina_plugin.config import require_retina_config
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import did_you_mean
from retina_plugin.modeling.backbones.pyramid import PaddedFPN, build_p3p7_fpn

NORMS = ("FrozenBN", "BN")
_STRIDES = (8, 16, 32)


class TimmBackbone(Backbone):
    """Computes feature maps of a timm model: "res3", "res4" and "res5", of strides 8, 16 and 32.

    ``body`` is timm's model without what follows its last feature map; parameters have timm's names.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] = (),
        freeze_at: int = 0,
        norm: str = "FrozenBN",
        channels: int = 3,
    ):
        """
        Args:
            name: of a model in timm, such as "tf_efficientnet_lite0". Its weights are not loaded.
            out_indices: of three feature maps in timm's order; empty for those of strides 8, 16 and 32.
            freeze_at: 0 trains all layers; 1 freezes the stem, n >= 2 everything up to the feature map of stride 2^n.
                Batch norms in frozen layers use their running statistics.
            norm: "BN" trains the batch norms of the other layers; with "FrozenBN" they, too, use their running
                statistics. Other norms, as of ConvNeXt and Swin, are trained with their layers.
            channels: of the images.

        Raises:
            ConfigError: timm is missing or has no such model; its feature maps have other strides; unknown ``norm``.
        """
        super().__init__()
        if norm not in NORMS:
            raise ConfigError([f"MODEL.TIMM.NORM is '{norm}', which is none of {', '.join(NORMS)}"])
        self.name = name
        self._channels = channels
        self.body: Any = _create_body(name, tuple(out_indices) or _find_pyramid(name), channels)
        info = self.body.feature_info
        if tuple(info.reduction()) != _STRIDES:
            raise ConfigError([_wrong_strides(name, out_indices)])
        self._shapes = {
            f"res{int(math.log2(stride))}": ShapeSpec(channels=width, stride=stride)
            for width, stride in zip(info.channels(), info.reduction())
        }
        self._is_nhwc = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")  # as Swin's
        frozen = _modules_up_to(self.body, freeze_at)
        for module in frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = False
        _freeze_batch_norms(self.body, list(self.body.modules()) if norm == "FrozenBN" else frozen)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map."""
        return self._shapes

    def fold_frozen_bn(self) -> int:
        """Fold frozen norms; see :func:`.timm_frozen_bn.fold_timm_frozen_bn`."""
        from retina_plugin.modeling.backbones.timm_frozen_bn import fold_timm_frozen_bn

        return fold_timm_frozen_bn(self.body, self._channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W), H and W multiples of 32, to feature maps (N, channels, H / stride, W / stride)."""
        features = self.body(images)
        if self._is_nhwc:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return dict(zip(self._shapes, features))


@BACKBONE_REGISTRY.register()
def build_p3p7_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PaddedFPN:
    """Build a model of timm and FPN with P6 and P7 on top; see :func:`.pyramid.build_p3p7_fpn`.

    ``MODEL.TIMM`` names the model, ``MODEL.BACKBONE.FREEZE_AT`` is as for Detectron2's ResNet.

    Raises:
        ConfigError: see :class:`TimmBackbone`; or pixels are given in another format than the model was trained with.
    """
    require_retina_config(cfg)
    timm = cfg.MODEL.TIMM
    if not timm.NAME:
        raise ConfigError(["MODEL.TIMM.NAME is empty: name a model of timm, such as 'tf_efficientnet_lite0'"])
    _check_pixels(cfg)
    bottom_up = TimmBackbone(
        timm.NAME,
        out_indices=timm.OUT_INDICES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm=timm.NORM,
        channels=input_shape.channels,
    )
    return build_p3p7_fpn(cfg, bottom_up)


def import_timm() -> Any:
    """Import timm.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ConfigError([f"MODEL.TIMM needs the package timm, and {error}: pip install timm"]) from None
    return timm


def pixel_format(name: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of RGB pixels in 0..255 that a model of timm was trained with."""
    config = import_timm().get_pretrained_cfg(name)
    return [255 * value for value in config.mean], [255 * value for value in config.std]


def _check_pixels(cfg: CfgNode) -> None:
    name = cfg.MODEL.TIMM.NAME
    _require_model(name)
    mean, std = pixel_format(name)
    is_same = all(
        len(have) == len(want) and all(abs(a - b) < 0.5 for a, b in zip(have, want))
        for have, want in ((cfg.MODEL.PIXEL_MEAN, mean), (cfg.MODEL.PIXEL_STD, std))
    )
    if cfg.INPUT.FORMAT != "RGB" or not is_same:
        rounded = [[round(value, 3) for value in values] for values in (mean, std)]
        raise ConfigError([
            f"{name} of timm was trained with other pixels than INPUT.FORMAT {cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN "
            f"{list(cfg.MODEL.PIXEL_MEAN)}, MODEL.PIXEL_STD {list(cfg.MODEL.PIXEL_STD)}. Set INPUT.FORMAT RGB, "
            f"MODEL.PIXEL_MEAN {rounded[0]}, MODEL.PIXEL_STD {rounded[1]}"
        ])  # fmt: skip


def _require_model(name: str) -> None:
    timm = import_timm()
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models())
        raise ConfigError([f"MODEL.TIMM.NAME is '{name}', which is no model of timm {timm.__version__}.{hint}"])


def _create_body(name: str, out_indices: tuple[int, ...] | None, channels: int) -> Any:
    _require_model(name)
    timm = import_timm()
    options: dict[str, Any] = {"features_only": True, "in_chans": channels}
    if out_indices:
        options["out_indices"] = out_indices
    try:
        if timm.get_pretrained_cfg(name).fixed_input_size:  # images have many sizes here
            for any_size in ({"strict_img_size": False}, {"dynamic_img_size": True}):  # of Swin, of ViT
                with contextlib.suppress(TypeError):
                    return timm.create_model(name, pretrained=False, **options, **any_size)
        return timm.create_model(name, pretrained=False, **options)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError([f"{name} of timm cannot be the backbone of a detector ({reason})"]) from error


def _strides(name: str) -> list[int]:
    return [feature["reduction"] for feature in _create_body(name, None, 3).feature_info.info]


def _find_pyramid(name: str) -> tuple[int, ...]:
    strides = _strides(name)
    if any(strides.count(stride) != 1 for stride in _STRIDES):
        raise ConfigError([_wrong_strides(name, ())])
    return tuple(strides.index(stride) for stride in _STRIDES)


def _wrong_strides(name: str, out_indices: Sequence[int]) -> str:
    asked = f" with MODEL.TIMM.OUT_INDICES {list(out_indices)}" if out_indices else ""
    return (
        f"P3-P5 need one feature map of each stride of {_STRIDES}; those of {name}{asked} are not that. Strides of all "
        f"its feature maps, from index 0: {_strides(name)}"
    )


def _modules_up_to(body: Any, freeze_at: int) -> list[nn.Module]:
    """Return the modules that ``freeze_at`` freezes, in the order of timm's model, which is that of their use."""
    if freeze_at <= 0:
        return []
    named = [(name.replace("_", "."), module) for name, module in body.named_modules()]

    def inside(stage: str) -> list[int]:
        stage = stage.replace("_", ".")
        return [i for i, (name, _) in enumerate(named) if f"{name}.".startswith(f"{stage}.")]

    features = body.feature_info.info
    stages = [feature["module"] for feature in features if feature["reduction"] <= 2**freeze_at]
    end = inside(stages[-1])[-1] + 1 if stages else inside(features[0]["module"])[0]
    return [module for _, module in named[:end]]


def _freeze_batch_norms(body: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Replace the batch norms among modules by timm's frozen ones, which keep their activation."""
    from timm.layers import freeze_batch_norm_2d

    chosen = {module for module in modules if isinstance(module, nn.BatchNorm2d)}
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if child in chosen:
                parent.add_module(name, freeze_batch_norm_2d(child))
