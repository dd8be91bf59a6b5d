"""The network that weights belong to, read from their names and shapes; and the names of torchvision's ResNets."""

import re

from retina_plugin.checkpoint.converters.conversion import Config, Weights, num_classes
from retina_plugin.core.errors import CheckpointError

# Blocks of res2..res5, and whether they are bottlenecks.
_DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
_RES2 = "backbone.bottom_up.res2.0"


def torchvision_resnet(prefix: str) -> list[tuple[str, str]]:
    """Renames of a ResNet with torchvision's names behind a prefix; mmdetection uses the same names."""
    prefix = re.escape(prefix)
    return [
        (rf"^{prefix}conv1\.", "backbone.bottom_up.stem.conv1."),
        (rf"^{prefix}bn1\.", "backbone.bottom_up.stem.conv1.norm."),
        *((rf"^{prefix}layer{stage - 1}\.", f"backbone.bottom_up.res{stage}.") for stage in range(2, 6)),
        (r"^(backbone\.bottom_up\.res.*)\.downsample\.0\.", r"\1.shortcut."),
        (r"^(backbone\.bottom_up\.res.*)\.downsample\.1\.", r"\1.shortcut.norm."),
        (r"^(backbone\.bottom_up\.res.*)\.bn(\d)\.", r"\1.conv\2.norm."),
    ]


def network_config(model: Weights) -> Config:
    """Return the keys of ``MODEL`` that the shapes of weights decide.

    Raises:
        CheckpointError: the weights are not those of a RetinaNet with P3 to P7 on a ResNet or ResNeXt.
    """
    try:
        return _network_config(model)
    except KeyError as error:
        raise CheckpointError(
            f"the weights are no RetinaNet with P3 to P7 on a ResNet: renamed, they have no {error.args[0]}"
        ) from None


def _network_config(model: Weights) -> Config:
    blocks = tuple(_count(model, rf"backbone\.bottom_up\.res{stage}\.\d+\.conv1\.weight") for stage in range(2, 6))
    bottleneck = f"{_RES2}.conv3.weight" in model
    if (blocks, bottleneck) not in _DEPTHS:
        raise CheckpointError(f"no ResNet that Detectron2 builds has {blocks} blocks in its four stages")
    config: Config = {"MODEL.RESNETS.DEPTH": _DEPTHS[blocks, bottleneck]}
    if bottleneck:
        width, width_per_group = model[f"{_RES2}.conv2.weight"].shape[:2]
        config["MODEL.RESNETS.NUM_GROUPS"] = width // width_per_group
        config["MODEL.RESNETS.WIDTH_PER_GROUP"] = width_per_group
    channels, p6_channels = model["backbone.top_block.p6.weight"].shape[:2]
    return config | {
        "MODEL.RESNETS.RES2_OUT_CHANNELS": len(model[f"{_RES2}.conv{3 if bottleneck else 2}.weight"]),
        "MODEL.FPN.OUT_CHANNELS": channels,
        "MODEL.FPN.TOP_BLOCK_IN_FEATURE": "p5" if p6_channels == channels else "res5",
        "MODEL.RETINANET.NUM_CLASSES": num_classes(model),
        "MODEL.RETINANET.NUM_CONVS": _count(model, r"head\.cls_subnet\.\d+\.weight", dims=4),
        "MODEL.RETINANET.NORM": "GN" if _count(model, r"head\.cls_subnet\.\d+\.weight", dims=1) else "",
    }


def _count(model: Weights, pattern: str, dims: int = 4) -> int:
    return sum(value.dim() == dims for name, value in model.items() if re.fullmatch(pattern, name))
