"""Files of steps that went wrong: everything that ``python -m retina_plugin replay`` needs to run one again."""

import os

import torch
from detectron2.structures import Boxes, Instances

from retina_plugin.checkpoint.weights_only import to_weights_only
from retina_plugin.core.files import atomic_write
from retina_plugin.diagnostics.step_diagnosis import StepSnapshot

FORMAT = 1
_PLAIN = (bool, int, float, str, torch.Tensor)


def write_recording(path, step, model, config, **more):
    """Write a step, and the weights it starts from, to a file that ``torch.load(weights_only=True)`` reads.

    Its ``model`` are weights as in any checkpoint, so that ``MODEL.WEIGHTS`` may name the file.

    Args:
        path: of the file; its folder is made.
        step: StepSnapshot
        model: not within ``DistributedDataParallel``.
        config: YAML of the whole configuration.
        more: numbers and text to keep with it.

    Raises:
        OSError: it cannot be written.
    """
    data = {
        "divergence_format": FORMAT,
        "model": {name: value.cpu() for name, value in model.state_dict().items()},
        "config": config,
        **step._asdict(),
        "batch": [_plain_image(image) for image in step.batch],
        **more,
    }
    os.makedirs(os.path.dirname(path), exist_ok=True)
    atomic_write(path, lambda file: torch.save(to_weights_only(data, "the step"), file))


def read_recording(path):
    """Read a file of :func:`write_recording`.

    Returns:
        StepSnapshot, and the file's content as a dict.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what is damaged fails in many ways
        raise ValueError(f"{path} is no file that a divergence leaves, or a damaged one") from error
    if not isinstance(data, dict) or data.get("divergence_format") != FORMAT:
        raise ValueError(
            f"{path} is no file that a divergence leaves: those are OUTPUT_DIR/divergence/iteration_N_rank_R.pth"
        )
    fields = {name: data[name] for name in StepSnapshot._fields}
    return StepSnapshot(**{**fields, "batch": [_image(image) for image in data["batch"]]}), data


def _plain_image(image):
    """What a dense detector reads of an image, as tensors, numbers and text; ground truth besides boxes is left out."""
    plain = {name: value for name, value in image.items() if isinstance(value, _PLAIN)}
    if "instances" in image:
        instances = image["instances"]
        fields = {name: _plain_field(value) for name, value in instances.get_fields().items()}
        plain["instances"] = {
            "image_size": tuple(int(size) for size in instances.image_size),
            "fields": {name: value for name, value in fields.items() if value is not None},
        }
    return plain


def _plain_field(value):
    if isinstance(value, Boxes):
        return {"boxes": value.tensor.cpu()}
    return value.cpu() if isinstance(value, torch.Tensor) else None


def _image(plain):
    if "instances" not in plain:
        return plain
    instances = Instances(plain["instances"]["image_size"])
    for name, value in plain["instances"]["fields"].items():
        instances.set(name, Boxes(value["boxes"]) if isinstance(value, dict) else value)
    return {**plain, "instances": instances}
