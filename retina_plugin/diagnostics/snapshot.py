"""Files of steps that went wrong: everything that ``python -m retina_plugin replay`` needs to run one again."""

import os
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from retina_plugin.checkpoint.torch_files import load_zip
from retina_plugin.checkpoint.weights_only import to_weights_only
from retina_plugin.core.files import atomic_write, refuse_special_file

FORMAT = 2
_NUMBER = (int, float)
# What a file has, and of which types.
_FIELDS: dict[str, tuple[type, ...]] = {
    **{"iteration": (int,), "batch": (list,), "num_micro_batches": (int,), "precision": (str,)},
    **{"loss_scale": _NUMBER, "divisor": (*_NUMBER, type(None)), "random_state": (dict,)},
    **{"model": (dict,), "config": (str,), "values": (dict,), "learning_rate": _NUMBER},
    **{"rank": (int,), "num_processes": (int,)},
}
_KEPT = (bool, int, float, str, Tensor)


class StepSnapshot(NamedTuple):
    """All that a step depends on, besides the model.

    Attributes:
        iteration: of the training.
        batch: images as the model takes them.
        num_micro_batches, precision: see :func:`retina_plugin.modeling.gradients.compute_gradients`.
        loss_scale: what ``GradScaler`` multiplied the loss by; 1 without it.
        divisor: of the losses; None if the step is to find it by itself.
        random_state: of :func:`retina_plugin.core.rng.torch_random_state`, before forward.
    """

    iteration: int
    batch: list[dict[str, Any]]
    num_micro_batches: int
    precision: str
    loss_scale: float
    divisor: float | None
    random_state: dict[str, Tensor]


def write_snapshot(path: str, step: StepSnapshot, model: nn.Module, config: str, **more: object) -> None:
    """Write a step, and the weights it starts from, to a file that ``torch.load(weights_only=True)`` reads.

    Its ``model`` are weights as in any checkpoint, so that ``MODEL.WEIGHTS`` may name the file.

    Args:
        path: of the file; its folder is made.
        step: the step.
        model: not within ``DistributedDataParallel``.
        config: YAML of the whole configuration.
        more: numbers and text to keep with it.

    Raises:
        OSError: the file cannot be written.
    """
    data = {
        "divergence_format": FORMAT,
        "model": {name: value.cpu() for name, value in model.state_dict().items()},
        "config": config,
        **step._asdict(),
        "batch": [_image_to_dict(image) for image in step.batch],
        **more,
    }
    os.makedirs(os.path.dirname(path), exist_ok=True)
    atomic_write(path, lambda file: torch.save(to_weights_only(data, "the step"), file))


def read_snapshot(path: str | os.PathLike) -> tuple[StepSnapshot, dict[str, Any]]:
    """Read a file of :func:`write_snapshot`.

    Returns:
        The step, and the file's content.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is something else.
    """
    try:
        refuse_special_file(path)
        data = load_zip(path)
    except OSError:
        raise
    except Exception as error:  # what is damaged fails in many ways
        raise ValueError(f"{path} is no file that a divergence leaves, or a damaged one") from error
    if not isinstance(data, dict) or not _is(data.get("divergence_format"), int) or data["divergence_format"] != FORMAT:
        raise ValueError(
            f"{path} is no file that a divergence leaves: those are OUTPUT_DIR/divergence/iteration_N_rank_R.pth"
        )
    wrong = [name for name, types in _FIELDS.items() if not _is(data.get(name, ...), *types)]
    if wrong or not all(_is(value, *_NUMBER) for value in data["values"].values()):
        raise ValueError(f"{path} is damaged: {', '.join(wrong) or 'values'} missing, or of another type")
    fields = {name: data[name] for name in StepSnapshot._fields}
    try:
        batch = [_image_from_dict(image) for image in data["batch"]]
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its images cannot be read ({error!r})") from error
    return StepSnapshot(**{**fields, "batch": batch}), data


def _is(value: object, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _image_to_dict(image: dict[str, Any]) -> dict[str, Any]:
    """What a dense detector reads of an image, as tensors, numbers and text; ground truth besides boxes is left out."""
    kept: dict[str, Any] = {name: value for name, value in image.items() if isinstance(value, _KEPT)}
    if "instances" in image:
        instances = image["instances"]
        fields = {name: _field_to_dict(value) for name, value in instances.get_fields().items()}
        kept["instances"] = {
            "image_size": tuple(int(size) for size in instances.image_size),
            "fields": {name: value for name, value in fields.items() if value is not None},
        }
    return kept


def _field_to_dict(value: object) -> Any:
    if isinstance(value, Boxes):
        return {"boxes": value.tensor.cpu()}
    return value.cpu() if isinstance(value, Tensor) else None


def _image_from_dict(kept: dict[str, Any]) -> dict[str, Any]:
    if "instances" not in kept:
        return kept
    instances = Instances(kept["instances"]["image_size"])
    for name, value in kept["instances"]["fields"].items():
        instances.set(name, Boxes(value["boxes"]) if isinstance(value, dict) else value)
    return {**kept, "instances": instances}
