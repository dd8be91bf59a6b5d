"""Configurations and trained models by name, as ``detectron2.model_zoo`` has them, for this plugin.

A name is that of a file in configs/, with or without ``.yaml``: ``retinanet_R50``, ``paper/table3/focal``. Detectron2's
own names of its RetinaNets, such as ``COCO-Detection/retinanet_R_50_FPN_1x.yaml``, are files there as well; the weights
that Detectron2 trained for them are what ``trained=True`` loads. Addresses are taken from Detectron2's own table.
"""

from pathlib import Path

import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from retina_plugin.checkpoint import RetinaCheckpointer
from retina_plugin.config import add_retina_config, merge_config
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import did_you_mean

# Of our own names those whose settings are exactly those of a model in Detectron2's zoo.
_SAME_AS = {"retinanet_R50": "COCO-Detection/retinanet_R_50_FPN_1x"}

_BGR = {"INPUT.FORMAT": "BGR", "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675]}
# What a backbone that was trained on ImageNet needs of a configuration: the statistics and the channel order of the
# images it saw, and its shape. Original ResNets have the stride in the 1x1 convolution, all others in the 3x3 one.
IMAGENET_BACKBONES = {
    "MSRA/R-50": {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
        **_BGR,
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
    },
    "MSRA/R-101": {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
        **_BGR,
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
    },
    "FAIR/X-101-32x8d": {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl",
        **_BGR,
        "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.RESNETS.NUM_GROUPS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    },
    "torchvision/R-50": {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    },
}
_PLAIN_RESNET = {"MODEL.RESNETS.NUM_GROUPS": 1, "MODEL.RESNETS.WIDTH_PER_GROUP": 64}


def get_config_file(name):
    """Path of a configuration file.

    Args:
        name (str): of a file in configs/, see above.

    Returns:
        str: its path, in the checkout or in the installed package.

    Raises:
        ConfigError: there is none of this name, or configs/ is not there.
    """
    known, stem = _known(), _stem(name)
    if stem not in known:
        hint = did_you_mean(stem, known)
        if not hint:
            # The paper's rows are listed in configs/paper.
            hint = f" Known: {', '.join(sorted(k for k in known if not k.startswith('paper/')))}."
        raise ConfigError([f"the model zoo has no configuration '{name}'.{hint}"])
    return str(known[stem])


def get_checkpoint_url(name):
    """Address of the weights that Detectron2 trained with a configuration.

    Args:
        name (str): see :func:`get_config_file`.

    Raises:
        ConfigError: unknown name, or nobody has published weights for it.
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


def get_config(name, trained=False):
    """A configuration for this plugin's detector.

    Args:
        name (str): see :func:`get_config_file`.
        trained (bool): set ``MODEL.WEIGHTS`` to the trained model instead of the backbone that training starts from.

    Returns:
        ``CfgNode`` with the plugin's keys.

    Raises:
        ConfigError: unknown name, or no trained weights for it.
    """
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, get_config_file(name))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    return cfg


def get(name, trained=False, device=None):
    """A detector with the weights that its configuration names, in training mode.

    Args:
        name (str), trained (bool): see :func:`get_config`.
        device (str): where it lies; None for ``MODEL.DEVICE``, or the CPU where there is no GPU.

    Raises:
        ConfigError: unknown name, or no trained weights for it.
        CheckpointError: the weights cannot be fetched or used.
    """
    cfg = get_config(name, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = str(device)
    model = build_model(cfg)
    # All of the detector where it was trained; else its backbone alone.
    RetinaCheckpointer(model, strict=trained).load(cfg.MODEL.WEIGHTS)
    return model


def use_imagenet_backbone(cfg, name):
    """Start training from another backbone: set its weights and all that belongs to them (in place).

    Args:
        cfg: a configuration.
        name (str): a key of ``IMAGENET_BACKBONES``.

    Raises:
        ConfigError: unknown name.
    """
    if name not in IMAGENET_BACKBONES:
        hint = did_you_mean(name, IMAGENET_BACKBONES) or f" Known: {', '.join(IMAGENET_BACKBONES)}."
        raise ConfigError([f"there is no ImageNet backbone '{name}'.{hint}"])
    settings = {**_PLAIN_RESNET, **IMAGENET_BACKBONES[name]}
    cfg.merge_from_list([word for setting in settings.items() for word in setting])


def _known():
    """Name -> path of every configuration."""
    configs = _configs()
    return {path.relative_to(configs).with_suffix("").as_posix(): path for path in configs.rglob("*.yaml")}


def _configs():
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):  # installed, checkout
        if (folder / "Base-RetinaNet.yaml").is_file():
            return folder
    raise ConfigError([
        f"retina_plugin's configurations are neither in {package / 'configs'} nor in {package.parent / 'configs'}: "
        "install the package again from a checkout"
    ])  # fmt: skip


def _stem(name):
    return str(name).removesuffix(".yaml")
