"""torchvision's ``retinanet_resnet50_fpn_v2``: P6 from C5, and group norms in the towers.

Its convolutions before a group norm have no bias, which ours get as 0. The backbone's norms, trained there, are frozen
here: in inference they compute the same.
"""

from collections.abc import Collection

from retina_plugin.checkpoint.converters import torchvision
from retina_plugin.checkpoint.converters.conversion import Checkpoint, Conversion, rename, without_counters

_TOWERS = [
    # The convolution and the norm of layer i.
    (rf"^head\.{theirs}\.conv\.{i}\.{part}\.", f"head.{ours}.{3 * i + part}.")
    for theirs, ours in torchvision.SUBNETS.items()
    for i in range(4)
    for part in range(2)
]
_CONFIG = {"MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou"}


def recognizes(names: Collection[str]) -> bool:
    return torchvision.has_norms_in_towers(names)


def convert(checkpoint: Checkpoint, norm_eps: float | None = None) -> Conversion:
    """See :func:`retina_plugin.checkpoint.converters.torchvision.convert`; ``norm_eps`` None is 1e-5."""
    weights = checkpoint["model"]
    model = rename(without_counters(weights), [*torchvision.RENAMES, *_TOWERS])
    for name, value in list(model.items()):
        if "_subnet." in name and value.dim() == 4:
            model.setdefault(name.replace("weight", "bias"), value.new_zeros(len(value)))
    return torchvision.convert_renamed(model, 1e-5 if norm_eps is None else norm_eps, [], _CONFIG)
