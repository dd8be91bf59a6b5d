"""Weights of other RetinaNets for this plugin's detector, and back: ``python -m retina_plugin convert``.

A source is a module with ``recognizes(names)``, whether a file with these names of weights is one of its, and
``convert(checkpoint, norm_eps=None)``, which returns a ``Conversion``. A target is a module with
``export(checkpoint, cfg)``, which does as well. What is special about each stands in its docstring.
"""

from retina_plugin.checkpoint.converters import (
    detectron,
    mmdetection,
    to_detectron2,
    to_torchvision,
    torchvision,
    torchvision_v2,
)
from retina_plugin.core.errors import CheckpointError

SOURCES = {
    "torchvision": torchvision,
    "torchvision_v2": torchvision_v2,
    "mmdetection": mmdetection,
    "detectron": detectron,
}
TARGETS = {"detectron2": to_detectron2, "torchvision": to_torchvision}


def detect_source(names):
    """The key of ``SOURCES`` that weights with these names come from.

    Raises:
        CheckpointError: none, or the weights have this plugin's names already.
    """
    names = set(names)
    for source, module in SOURCES.items():
        if module.recognizes(names):
            return source
    if "head.cls_score.weight" in names:
        raise CheckpointError(
            "the weights already have this plugin's names, those of Detectron2: set MODEL.WEIGHTS to them as they are"
        )
    examples = ", ".join(sorted(names)[:3])
    raise CheckpointError(
        f"these are no weights of a RetinaNet of {', '.join(SOURCES)}: their names are {examples}, ... "
        "Name the source with --from if you know better"
    )


def convert(checkpoint, source=None, norm_eps=None):
    """Convert a checkpoint for ``FocalRetinaNet``.

    Args:
        checkpoint: dict with ``model``: name -> tensor or array, as ``read_checkpoint`` returns it.
        source: a key of ``SOURCES``; None to detect it.
        norm_eps: what the backbone's norms add to the variance; None for what is usual for the source.

    Returns:
        ``Conversion``.

    Raises:
        CheckpointError: the weights are no RetinaNet that this detector can be.
    """
    if source is None:
        source = detect_source(checkpoint["model"])
    return SOURCES[source].convert(checkpoint, norm_eps=norm_eps)
