"""Plans which weights of a file go where in a model, before anything changes."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from fvcore.common.checkpoint import _filter_reused_missing_keys, _group_checkpoint_keys, _group_to_str
from tabulate import tabulate
from torch import Tensor, nn

from retina_plugin.checkpoint.class_remap import ClassLayer, find_class_layer, names_in_file, row_sources, take_rows
from retina_plugin.checkpoint.compare import differing_types, strip_wrappers
from retina_plugin.checkpoint.timm_weights import rename_classifier
from retina_plugin.core.errors import CheckpointError
from retina_plugin.core.text import list_some, one_line
from retina_plugin.data.class_names import first_difference

_MANY = 20


@dataclass
class LoadPlan:
    """The weights for a model, under its names and in its shapes, and what the user should know about them.

    Attributes:
        weights: name -> tensor, also of names that the model does not have (``unused``).
        remapped: names whose rows were taken by class.
        unused: names in the file that the model does not have.
        class_note: a sentence about the rows of the classes; empty if they are loaded unchanged.
    """

    weights: "OrderedDict[str, Tensor]"
    remapped: list[str]
    unused: list[str]
    class_note: str

    @classmethod
    def make(
        cls, model: nn.Module, checkpoint: Mapping[str, Any], strict: bool, class_names: Sequence[str] | None
    ) -> "LoadPlan":
        """Match a checkpoint with a model.

        Args:
            model: not wrapped; does not change.
            checkpoint: see :func:`~retina_plugin.checkpoint.reader.read_checkpoint`.
            strict: whether everything must fit unchanged, also the class names.
            class_names: of the data; None if unknown.

        Raises:
            CheckpointError: shapes differ for another reason than the number of classes; numbers are of another kind
                (integers in place of floating-point ones); nothing fits; with ``strict``, keys are missing or
                unexpected, or the classes differ.
        """
        weights, by_name = _rename_for(model, checkpoint)
        expected = model.state_dict()
        if wrong := differing_types(weights, expected):
            raise CheckpointError(
                f"another kind of numbers in {len(wrong)} of its tensors: {list_some(wrong, 3, '; ')}"
            )
        layer = find_class_layer(model)
        file_names = names_in_file(checkpoint, weights, layer)
        remapped: list[str] = []
        class_note = ""
        if strict and file_names is not None and class_names is not None:
            _refuse_other_classes(file_names, class_names)
        elif layer is not None and not strict:
            remapped, class_note = _remap_classes(model, weights, layer, file_names, class_names)

        unused = [key for key in weights if key not in expected and not _is_optional(key)]
        _refuse_shapes(weights, expected, unused if by_name else ())
        if not any(key in expected for key in weights):
            raise CheckpointError(
                f"none of its {len(weights)} tensors is of this model; it begins with {next(iter(weights))}"
            )
        if strict:
            missing = [key for key in expected if key not in weights and not _is_optional(key)]
            _refuse_keys(_filter_reused_missing_keys(model, missing), unused)
        return cls(weights, remapped, unused, class_note)

    def summary(self, model: nn.Module, missing: Iterable[str]) -> str:
        """A table of what was loaded, one row per module.

        Args:
            model: the model that was loaded.
            missing: names that the file lacks, as ``load_state_dict`` returns them.
        """
        absent = {key for key in missing if not _is_optional(key)}
        counts: dict[str, Counter[str]] = {}
        for key in model.state_dict():
            if key in self.weights or key in absent:
                kind = "initialized" if key in absent else "re-mapped" if key in self.remapped else "loaded"
                counts.setdefault(_module(key), Counter())[kind] += 1
        kinds = ("loaded", "re-mapped", "initialized")
        rows = [(module, *(count[kind] or "" for kind in kinds)) for module, count in counts.items()]
        return tabulate(rows, tablefmt="pipe", headers=["tensors of", *kinds])

    def notes(self) -> list[str]:
        """Sentences about classes, and about what was left out."""
        notes = [self.class_note] if self.class_note else []
        if self.unused:
            notes.append(f"Not of this model, and left out: {list_some(self.unused, 5, '; ')}")
        return notes


def _rename_for(model: nn.Module, checkpoint: Mapping[str, Any]) -> "tuple[OrderedDict[str, Tensor], bool]":
    """The weights under the model's names, and whether these were matched by heuristics."""
    weights, expected = checkpoint["model"], model.state_dict()
    tensors: Any = OrderedDict((key, torch.as_tensor(value)) for key, value in weights.items())
    if hasattr(weights, "_metadata"):  # format versions of the modules
        tensors._metadata = weights._metadata.copy()
    strip_wrappers(tensors, lambda names: any(name in expected for name in names))
    if (renamed := rename_classifier(model, tensors)) is not None:
        return renamed, False
    if not checkpoint.get("matching_heuristics", False):
        return tensors, False
    logger = logging.getLogger("detectron2.checkpoint.c2_model_loading")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it logs a line per layer
    try:
        from_caffe2 = checkpoint.get("__author__") == "Caffe2"
        return OrderedDict(align_and_update_state_dicts(expected, tensors, from_caffe2)), True
    except Exception as error:  # of Detectron2's code, which expects the layers of its models
        raise CheckpointError(f"its names cannot be matched with the model's: {error}") from error
    finally:
        logger.setLevel(level)


def _is_optional(key: str) -> bool:
    """Whether only the model or only its checkpoint may have this key: it is derived, or has a harmless default."""
    return (
        key.endswith("num_batches_tracked")
        or key in ("loss_normalizer.ema", "pixel_mean", "pixel_std")
        or "anchor_generator." in key
    )


def _remap_classes(
    model: nn.Module,
    weights: dict[str, Tensor],
    layer: ClassLayer,
    file_names: Sequence[str] | None,
    class_names: Sequence[str] | None,
) -> tuple[list[str], str]:
    """Replace the rows of the class layer in ``weights``; returns the keys and a sentence."""
    keys = [key for key in layer.keys if key in weights]
    if not keys:
        return [], ""
    num_anchors, num_classes = layer.num_anchors, layer.num_classes
    rows = len(weights[keys[0]]) if weights[keys[0]].ndim else 0
    if file_names is not None and rows != num_anchors * len(file_names):
        raise CheckpointError(
            f"{keys[0]} has {rows} rows for its {len(file_names)} classes, "
            f"and {num_anchors * num_classes} in the model for {num_classes}: the model has {num_anchors} anchors "
            "a cell (MODEL.ANCHOR_GENERATOR), and the file others"
        )
    if rows == 0 or rows % num_anchors:
        return [], ""  # another number of anchors, which the check of shapes reports
    if class_names is not None and len(class_names) != num_classes:
        class_names = None  # the model was built for other classes
    sources = row_sources(file_names, class_names, rows // num_anchors, num_classes)
    if sources == list(range(rows // num_anchors)):
        return [], ""
    fresh = model.state_dict()
    for key in keys:
        if weights[key].shape != (rows, *fresh[key].shape[1:]):
            return [], ""  # another width, which the check of shapes reports
    for key in keys:
        weights[key] = take_rows(fresh[key].cpu(), weights[key], sources, num_anchors)
    return keys, _about_classes(sources, file_names, class_names)


def _about_classes(
    sources: Sequence[int | None], file_names: Sequence[str] | None, class_names: Sequence[str] | None
) -> str:
    new = [k for k, source in enumerate(sources) if source is None]
    if len(new) == len(sources):
        reason = "no class has a name in common" if file_names and class_names else "one side has no names of classes"
        return f"The rows of all {len(sources)} classes keep their initialization: {reason}."
    taken = f"The rows of {len(sources) - len(new)} of {len(sources)} classes were taken by name"
    if not new or class_names is None:
        return f"{taken}."
    names = list_some([class_names[k] for k in new], 5)
    return f"{taken}; those of {names} keep their initialization."


def _refuse_other_classes(file_names: Sequence[str], class_names: Sequence[str]) -> None:
    difference = first_difference(file_names, class_names)
    if difference is not None:
        label, ours, theirs = difference
        raise CheckpointError(
            f"their {len(file_names)} classes are not the {len(class_names)} of the data: class {label} is "
            f"{one_line(ours)} in the weights and {one_line(theirs)} in the data. Use the data set that they were "
            "trained for, with its classes in the same order, or train on from these weights in a new run"
        )


def _refuse_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], unmatched: Iterable[str]) -> None:
    pairs = [(key, key) for key in weights if key in expected]
    # Matching by the ends of names skips tensors of another shape. A linear layer and a convolution do not correspond.
    pairs += [
        (key, name)
        for key in unmatched
        for name in expected
        if name.endswith(f".{key}") and name not in weights and expected[name].ndim == weights[key].ndim
    ]
    wrong = [
        f"{name}: {tuple(weights[key].shape)} in the file, {tuple(expected[name].shape)} in the model"
        for key, name in pairs
        if weights[key].shape != expected[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors are of another shape than the model's, which number of anchors, channels and depth "
            f"decide:\n{_lines(wrong)}"
        )


def _refuse_keys(missing: Sequence[str], unexpected: Sequence[str]) -> None:
    parts = []
    for keys, what in ((missing, "missing in the file"), (unexpected, "not of this model")):
        if keys:
            groups = _group_checkpoint_keys(sorted(keys))
            lines = sorted(name + _group_to_str(group) for name, group in groups.items())
            parts.append(f"{len(keys)} tensors are {what}:\n{_lines(lines)}")
    if parts:
        raise CheckpointError("these are the weights of another model. " + "\n".join(parts))


def _lines(items: Sequence[str]) -> str:
    more = [f"and {len(items) - _MANY} more"] if len(items) > _MANY else []
    return "\n".join(f"  {one_line(line)}" for line in [*items[:_MANY], *more])


def _module(key: str) -> str:
    return ".".join(part.rstrip("0123456789") or part for part in key.split(".")[:-1][:2])
