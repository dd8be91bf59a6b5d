"""Configurations and trained models by name, like ``detectron2.model_zoo``.

A name is that of a file in configs/, with or without ``.yaml``: ``retinanet_R50``, ``paper/table3/focal``, or one of
Detectron2's own, such as ``COCO-Detection/retinanet_R_50_FPN_1x.yaml``, for which ``trained=True`` loads the weights
that Detectron2 published.
"""

from pathlib import Path
from typing import Any

import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from retina_plugin.checkpoint import RetinaCheckpointer
from retina_plugin.checkpoint.converters.conversion import BGR_INPUT, RGB_INPUT
from retina_plugin.config import get_cfg, merge_config
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import did_you_mean

# Of our own names those whose settings are exactly those of a model in Detectron2's zoo.
_SAME_AS = {"retinanet_R50": "COCO-Detection/retinanet_R_50_FPN_1x"}

# The keys that belong to a backbone trained on ImageNet: statistics and channel order of its images, and its shape.
# Original ResNets have the stride in the 1x1 convolution, all others in the 3x3 one.
IMAGENET_BACKBONES: dict[str, dict[str, Any]] = {
    "MSRA/R-50": {**BGR_INPUT, "MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.STRIDE_IN_1X1": True},
    "MSRA/R-101": {**BGR_INPUT, "MODEL.RESNETS.DEPTH": 101, "MODEL.RESNETS.STRIDE_IN_1X1": True},
    "FAIR/X-101-32x8d": {
        **BGR_INPUT,
        "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.RESNETS.NUM_GROUPS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    },
    "torchvision/R-50": {**RGB_INPUT, "MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.STRIDE_IN_1X1": False},
}
for _name, _settings in IMAGENET_BACKBONES.items():
    _settings["MODEL.WEIGHTS"] = f"detectron2://ImageNetPretrained/{_name}.pkl"
_PLAIN_RESNET = {"MODEL.RESNETS.NUM_GROUPS": 1, "MODEL.RESNETS.WIDTH_PER_GROUP": 64}


def get_config_file(name: str) -> str:
    """Return the path of a configuration file, in the checkout or in the installed package.

    Raises:
        ConfigError: no configuration has this name, or configs/ is missing.
    """
    known, stem = _known(), _stem(name)
    if stem not in known:
        hint = did_you_mean(stem, known)
        if not hint:  # the paper's rows are listed in configs/paper
            hint = f" Known: {', '.join(sorted(k for k in known if not k.startswith('paper/')))}."
        raise ConfigError([f"the model zoo has no configuration '{name}'.{hint}"])
    return str(known[stem])


def get_checkpoint_url(name: str) -> str:
    """Return the address of the weights that Detectron2 trained with a configuration.

    Raises:
        ConfigError: unknown name, or no published weights.
    """
    get_config_file(name)  # the name must exist
    stem = _stem(name)
    try:
        return detectron2_zoo.get_checkpoint_url(_SAME_AS.get(stem, stem))
    except RuntimeError:
        trained = sorted({*_SAME_AS, *(known for known in _known() if known.startswith("COCO-Detection/"))})
        raise ConfigError([
            f"there are no trained weights for '{name}'; there are for {', '.join(trained)}. "
            "Use trained=False to start from an ImageNet backbone"
        ]) from None  # fmt: skip


def get_config(name: str, trained: bool = False) -> CfgNode:
    """Return a configuration with the plugin's keys.

    Args:
        name: see :func:`get_config_file`.
        trained: let ``MODEL.WEIGHTS`` be the trained model instead of the backbone that training starts from.

    Raises:
        ConfigError: unknown name, or no published weights.
    """
    cfg = get_cfg()
    merge_config(cfg, get_config_file(name))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    return cfg


def get(name: str, trained: bool = False, device: str | torch.device | None = None) -> nn.Module:
    """Build a detector with the weights that its configuration names, in training mode.

    Args:
        name, trained: see :func:`get_config`.
        device: None for ``MODEL.DEVICE``, or the CPU if there is no GPU.

    Raises:
        ConfigError: unknown name, or no published weights.
        CheckpointError: the weights cannot be fetched or used.
    """
    cfg = get_config(name, trained)
    if device is not None or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = str(device or "cpu")
    model = build_model(cfg)
    # Trained weights fit the whole detector, others its backbone alone.
    RetinaCheckpointer(model, strict=trained).load(cfg.MODEL.WEIGHTS)
    return model


def use_imagenet_backbone(cfg: CfgNode, name: str) -> None:
    """Set the weights of another backbone and all keys that belong to them (in place).

    Args:
        cfg: a configuration.
        name: a key of ``IMAGENET_BACKBONES``.

    Raises:
        ConfigError: unknown name.
    """
    if name not in IMAGENET_BACKBONES:
        hint = did_you_mean(name, IMAGENET_BACKBONES) or f" Known: {', '.join(IMAGENET_BACKBONES)}."
        raise ConfigError([f"there is no ImageNet backbone '{name}'.{hint}"])
    settings = {**_PLAIN_RESNET, **IMAGENET_BACKBONES[name]}
    cfg.merge_from_list([word for setting in settings.items() for word in setting])


def _known() -> dict[str, Path]:
    """Name -> path of every configuration."""
    configs = _configs()
    return {path.relative_to(configs).with_suffix("").as_posix(): path for path in configs.rglob("*.yaml")}


def _configs() -> Path:
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):  # installed, checkout
        if (folder / "Base-RetinaNet.yaml").is_file():
            return folder
    raise ConfigError([
        f"retina_plugin's configurations are neither in {package / 'configs'} nor in {package.parent / 'configs'}: "
        "install the package again from a checkout"
    ])  # fmt: skip


def _stem(name: str) -> str:
    return str(name).removesuffix(".yaml")
