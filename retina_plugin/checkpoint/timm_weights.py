"""Names weights of a timm classifier as its features are named in a detector."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from retina_plugin.core.errors import CheckpointError
from retina_plugin.core.text import list_some
from retina_plugin.modeling.backbones.timm_fpn import TimmBackbone, import_timm

_COUNTER = "num_batches_tracked"


def rename_classifier(model: nn.Module, weights: Mapping[str, Tensor]) -> "OrderedDict[str, Tensor] | None":
    """Rename the weights of a classifier for a detector whose backbone is the same model of timm.

    The names are timm's, or those of another implementation whose tensors have the same shapes in the same order. What
    the backbone does not have, such as the classifier's last layers, keeps its name.

    Returns:
        The renamed weights; None if the backbone is not timm's, or the weights are those of a detector.

    Raises:
        CheckpointError: the weights are neither of a detector nor of this classifier.
    """
    prefix, backbone = next(
        ((name, module) for name, module in model.named_modules() if isinstance(module, TimmBackbone)), ("", None)
    )
    if backbone is None or any(key.startswith(f"{prefix}.") for key in weights):
        return None
    with torch.device("meta"):  # no memory, no time
        classifier = import_timm().create_model(backbone.name).state_dict()
    ours = {key.replace("_", "."): f"{prefix}.body.{key}" for key in backbone.body.state_dict()}
    return OrderedDict(
        (ours.get(name.replace("_", "."), key), weights[key])
        for key, name in _timm_names(weights, classifier, backbone.name).items()
    )


def _timm_names(weights: Mapping[str, Tensor], classifier: Mapping[str, Tensor], model_name: str) -> dict[str, str]:
    """Return key in the file -> name in timm."""
    names = [name for name in classifier if not name.endswith(_COUNTER)]
    keys = [key for key in weights if not key.endswith(_COUNTER)]
    if set(keys) <= set(names):
        pairs = {key: key for key in keys}
    else:
        pairs = dict(zip(keys, names))
        if len(keys) != len(names):
            raise CheckpointError(
                f"it has {len(keys)} tensors, and {model_name} of timm {len(names)}: it is neither of this detector "
                f"nor of this model. It begins with {list_some(keys, 2)}"
            )
    wrong = [
        f"{key}: {tuple(weights[key].shape)} in the file, {tuple(classifier[name].shape)} for {name}"
        for key, name in pairs.items()
        if weights[key].shape != classifier[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{len(wrong)} tensors do not fit {model_name} of timm: {list_some(wrong, 3, '; ')}")
    return pairs
