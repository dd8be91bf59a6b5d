"""Weights of other RetinaNets for this plugin's detector, and back: ``python -m retina_plugin convert``.

A source is a module with ``recognizes(names)``, which tells whether weights with these names come from it, and
``convert(checkpoint, norm_eps=None)``. A target is a module with ``export(checkpoint, cfg)``, given a checkpoint of
this plugin and its configuration. Both return a ``Conversion`` and raise ``CheckpointError`` if the other detector
cannot compute the same. ``norm_eps`` is what the backbone's norms add to the variance; None stands for what is usual in
the source.
"""

from collections.abc import Collection, Iterable

from retina_plugin.checkpoint.converters import (
    detectron,
    mmdetection,
    to_detectron2,
    to_torchvision,
    torchvision,
    torchvision_v2,
)
from retina_plugin.checkpoint.converters.conversion import Checkpoint, Conversion
from retina_plugin.core.errors import CheckpointError

SOURCES = {
    "torchvision": torchvision,
    "torchvision_v2": torchvision_v2,
    "mmdetection": mmdetection,
    "detectron": detectron,
}
TARGETS = {"detectron2": to_detectron2, "torchvision": to_torchvision}


def detect_source(names: Iterable[str]) -> str:
    """The key of ``SOURCES`` for weights with these names.

    Raises:
        CheckpointError: there is none, or the weights have this plugin's names already.
    """
    known = set(names)
    for source, module in SOURCES.items():
        if module.recognizes(known):
            return source
    if "head.cls_score.weight" in known:
        raise CheckpointError(
            "the weights already have this plugin's names, those of Detectron2: set MODEL.WEIGHTS to them as they are"
        )
    examples = ", ".join(sorted(known)[:3])
    raise CheckpointError(
        f"these are no weights of a RetinaNet of {', '.join(SOURCES)}: their names are {examples}, ... "
        "Name the source with --from if you know better"
    )


def recognizes_source(names: Collection[str]) -> bool:
    """Whether weights with these names come from one of ``SOURCES``, or from this plugin."""
    return "head.cls_score.weight" in names or any(module.recognizes(names) for module in SOURCES.values())


def convert(checkpoint: Checkpoint, source: str | None = None, norm_eps: float | None = None) -> Conversion:
    """Convert a checkpoint for ``FocalRetinaNet``; a ``source`` of None is detected from the names of the weights."""
    return SOURCES[source or detect_source(checkpoint["model"])].convert(checkpoint, norm_eps=norm_eps)
