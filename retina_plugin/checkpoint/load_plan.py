"""What of a file goes where in a model, decided before anything changes."""

import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from fvcore.common.checkpoint import _filter_reused_missing_keys, _group_checkpoint_keys, _group_to_str
from fvcore.common.checkpoint import _strip_prefix_if_present as strip_prefix
from tabulate import tabulate

from retina_plugin.checkpoint.class_remap import class_layer, names_in_file, row_sources, take_rows
from retina_plugin.core.errors import CheckpointError
from retina_plugin.data.class_names import first_difference

_MANY = 20


@dataclass
class Loading:
    """The weights for a model, of the model's names and shapes, and what the user should know about them."""

    weights: OrderedDict
    """Name -> tensor, also of names that the model does not have (``unused``)."""
    remapped: list
    """Names whose rows were taken by class."""
    unused: list
    """Names of the file that the model does not have."""
    classes: str
    """A sentence on the rows of the classes; empty where they are loaded as they are."""


def plan(model, checkpoint, *, strict, class_names):
    """Match a checkpoint with a model.

    Args:
        model: module, not wrapped; it does not change.
        checkpoint: of :func:`~retina_plugin.checkpoint.reader.read_checkpoint`.
        strict: whether everything must fit as it is, also the names of the classes.
        class_names: those of the data, or None.

    Returns:
        Loading

    Raises:
        CheckpointError: shapes differ that the number of classes does not explain; nothing fits; with ``strict``, keys
            are missing or unexpected, or the classes are others.
    """
    weights, by_name = _in_the_models_names(model, checkpoint)
    layer = class_layer(model)
    file_names = names_in_file(checkpoint, weights, layer)
    if strict and file_names is not None and class_names is not None:
        _refuse_other_classes(file_names, class_names)
    remapped, classes = [], ""
    if layer is not None and not strict:
        remapped, classes = _remap(model, weights, layer, file_names, class_names)

    expected = model.state_dict()
    unused = [key for key in weights if key not in expected and not _may_differ(key)]
    _refuse_shapes(weights, expected, unused if by_name else ())
    if not any(key in expected for key in weights):
        raise CheckpointError(
            f"none of its {len(weights)} tensors is of this model; it begins with {next(iter(weights))}"
        )
    if strict:
        missing = [key for key in expected if key not in weights and not _may_differ(key)]
        _refuse_keys(_filter_reused_missing_keys(model, missing), unused)
    return Loading(weights, remapped, unused, classes)


def summary(loading, model, missing):
    """A table of what was loaded, one row a module.

    Args:
        loading: what went into the model.
        model: the model.
        missing: names that the file has nothing for, as ``load_state_dict`` returns them.
    """
    missing = {key for key in missing if not _may_differ(key)}
    keys = [key for key in model.state_dict() if key in loading.weights or key in missing]
    counts = {}
    for key in keys:
        kind = "initialized" if key in missing else "re-mapped" if key in loading.remapped else "loaded"
        counts.setdefault(_module(key), Counter())[kind] += 1
    kinds = ("loaded", "re-mapped", "initialized")
    rows = [(module, *(count[kind] or "" for kind in kinds)) for module, count in counts.items()]
    table = tabulate(rows, tablefmt="pipe", headers=["tensors of", *kinds])
    parts = [table, loading.classes]
    if loading.unused:
        parts.append(f"Not of this model, and left out: {_listed(loading.unused, '; ', 5)}")
    return "\n".join(part for part in parts if part)


def _in_the_models_names(model, checkpoint):
    weights = checkpoint["model"]
    tensors = OrderedDict((key, torch.as_tensor(value)) for key, value in weights.items())
    if hasattr(weights, "_metadata"):  # versions of the modules' formats
        tensors._metadata = weights._metadata.copy()
    strip_prefix(tensors, "module.")  # of a model within DataParallel
    if not checkpoint.get("matching_heuristics", False):
        return tensors, False
    logger = logging.getLogger("detectron2.checkpoint.c2_model_loading")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its table has a line for every layer
    try:
        from_caffe2 = checkpoint.get("__author__") == "Caffe2"
        return OrderedDict(align_and_update_state_dicts(model.state_dict(), tensors, from_caffe2)), True
    except (AssertionError, ValueError) as error:
        raise CheckpointError(f"its names cannot be matched with the model's: {error}") from error
    finally:
        logger.setLevel(level)


def _may_differ(key):
    """Whether a model and its checkpoint may disagree on having this key: it is derived, or has a harmless default."""
    # Means of pixels and anchors come from the configuration; old checkpoints have them.
    return (
        key.endswith("num_batches_tracked")
        or key in ("loss_normalizer.ema", "pixel_mean", "pixel_std")
        or "anchor_generator." in key
    )


def _remap(model, weights, layer, file_names, class_names):
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
        return [], ""  # another number of anchors: the shapes tell
    if class_names is not None and len(class_names) != num_classes:
        class_names = None  # they are not what the model was built for
    sources = row_sources(file_names, class_names, rows // num_anchors, num_classes)
    if sources == list(range(rows // num_anchors)):
        return [], ""
    fresh = model.state_dict()
    for key in keys:
        if weights[key].shape[1:] != fresh[key].shape[1:] or len(weights[key]) != rows:
            return [], ""  # another width: the shapes tell
    for key in keys:
        weights[key] = take_rows(fresh[key].cpu(), weights[key], sources, num_anchors)
    return keys, _about_classes(sources, file_names, class_names)


def _about_classes(sources, file_names, class_names):
    new = [k for k, source in enumerate(sources) if source is None]
    if len(new) == len(sources):
        reason = "no class has a name in common" if file_names and class_names else "one side has no names of classes"
        return f"The rows of all {len(sources)} classes keep their initialization: {reason}."
    taken = f"The rows of {len(sources) - len(new)} of {len(sources)} classes were taken by name"
    if not new:
        return f"{taken}."
    names = [class_names[k] for k in new]
    return f"{taken}; those of {_listed(names, ', ', 5)} keep their initialization."


def _refuse_other_classes(file_names, class_names):
    difference = first_difference(file_names, class_names)
    if difference is not None:
        label, ours, theirs = difference
        raise CheckpointError(
            f"their {len(file_names)} classes are not the {len(class_names)} of the data: class {label} is {ours} in "
            f"the weights and {theirs} in the data. Use the data set that they were trained for, with its classes in "
            "the same order, or train on from these weights in a new run"
        )


def _refuse_shapes(weights, expected, unmatched):
    pairs = [(key, key) for key in weights if key in expected]
    # Matching by the ends of names leaves out what is of another shape. A linear layer is no convolution, though.
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
            f"decide:\n{_listed(wrong, indent=True)}"
        )


def _refuse_keys(missing, unexpected):
    parts = []
    for keys, what in ((missing, "missing in the file"), (unexpected, "not of this model")):
        if keys:
            groups = _group_checkpoint_keys(sorted(keys))
            lines = sorted(name + _group_to_str(group) for name, group in groups.items())
            parts.append(f"{len(keys)} tensors are {what}:\n{_listed(lines, indent=True)}")
    if parts:
        raise CheckpointError("these are the weights of another model. " + "\n".join(parts))


def _listed(items, separator="\n", many=_MANY, indent=False):
    shown = [f"  {item}" if indent else item for item in items[:many]]
    if len(items) > many:
        shown.append(f"{'  ' if indent else ''}and {len(items) - many} more")
    return separator.join(shown)


def _module(key):
    return ".".join(part.rstrip("0123456789") or part for part in key.split(".")[:-1][:2])
