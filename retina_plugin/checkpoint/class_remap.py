"""Fine-tuning to other classes: copies rows of the classification layer by class name.

A anchors a cell; K classes of the model, K' of the file. Output channels ("rows") of the layer are anchor-major: row
a * K + k is class k of anchor a.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor, nn

from retina_plugin.core.errors import CheckpointError

LAYER = "head.cls_score"
COCO_NAMES = tuple(category["name"] for category in COCO_CATEGORIES if category["isthing"])


@dataclass(frozen=True)
class ClassLayer:
    """The layer that has rows for classes: the keys of its parameters, A and K."""

    keys: tuple[str, ...]
    num_anchors: int
    num_classes: int


def find_class_layer(model: nn.Module) -> ClassLayer | None:
    """Return the class layer of a RetinaNet, this plugin's or Detectron2's own; None for other models."""
    try:
        layer = model.get_submodule(LAYER)
    except AttributeError:
        return None
    num_classes = getattr(model, "num_classes", None)
    if not isinstance(layer, nn.Conv2d) or not isinstance(num_classes, int) or layer.out_channels % num_classes:
        return None
    keys = tuple(f"{LAYER}.{name}" for name, _ in layer.named_parameters(recurse=False))
    return ClassLayer(keys, layer.out_channels // num_classes, num_classes)


def names_in_file(
    checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor], layer: ClassLayer | None
) -> tuple[str, ...] | None:
    """Return the class names that a checkpoint was trained on.

    Args:
        checkpoint: a file's content, with ``class_names`` if :class:`RetinaCheckpointer` wrote it.
        weights: name -> tensor, under the names of the model.
        layer: the model's class layer, if it has one.

    Returns:
        The names in the file; COCO's for a model-zoo file of 80 classes; None if the names are unknown.

    Raises:
        CheckpointError: ``class_names`` is not a list of names.
    """
    names = checkpoint.get("class_names")
    if names is not None:
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"its class_names are no list of names, but a {type(names).__name__}")
        return tuple(names)
    if layer is None or layer.keys[0] not in weights:
        return None
    rows = weights[layer.keys[0]].shape[:1].numel()  # 1 for a scalar
    of_zoo = "__author__" in checkpoint and not checkpoint.get("matching_heuristics", False)
    return COCO_NAMES if of_zoo and rows == layer.num_anchors * len(COCO_NAMES) else None


def row_sources(
    file_names: Sequence[str] | None, model_names: Sequence[str] | None, num_file_classes: int, num_classes: int
) -> list[int | None]:
    """Find the class of the file, if any, whose rows each class of the model takes.

    Classes are matched by name. If the names of one side are unknown, all rows are taken if K equals K', and none
    otherwise: the order of the classes would be a guess.

    Returns:
        K indices into the K' classes of the file.
    """
    if file_names is not None and model_names is not None:
        if tuple(file_names) == tuple(model_names):  # also with a name that occurs twice
            return list(range(num_classes))
        index = {name: i for i, name in reversed(list(enumerate(file_names)))}
        return [index.get(name) for name in model_names]
    return list(range(num_classes)) if num_file_classes == num_classes else [None] * num_classes


def take_rows(fresh: Tensor, loaded: Tensor, sources: Sequence[int | None], num_anchors: int) -> Tensor:
    """Copy rows of classes, for all anchors.

    Args:
        fresh: (A * K, ...) initial weight or bias of the model.
        loaded: (A * K', ...) weight or bias of the file.
        sources: K indices into the K' classes; None for a class that keeps its fresh rows.
        num_anchors: A.

    Returns:
        (A * K, ...), a new tensor.
    """
    fresh, loaded = fresh.unflatten(0, (num_anchors, -1)), loaded.unflatten(0, (num_anchors, -1))
    classes = [k for k, source in enumerate(sources) if source is not None]
    taken = [source for source in sources if source is not None]
    rows = fresh.clone()
    rows[:, classes] = loaded[:, taken].to(rows)
    return rows.flatten(0, 1)
