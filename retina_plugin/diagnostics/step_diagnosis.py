"""What is wrong with a step whose losses or gradients are not finite: it is run again, and looked at from inside."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from detectron2.utils.events import EventStorage

from retina_plugin.core.rng import set_torch_random_state
from retina_plugin.core.rollback import Rollback


class StepSnapshot(NamedTuple):
    """All that a step depends on, besides the model.

    batch: list of images as the model takes them. num_parts, precision: see :func:`.accumulation.add_gradients`.
    loss_scale: what ``GradScaler`` multiplied the loss by; 1 without it.
    divisor: of the losses, float; None where the step is to find it by itself.
    random_state: of :func:`.rollback.random_state`, before forward.
    """

    iteration: int
    batch: list
    num_parts: int
    precision: str
    loss_scale: float
    divisor: float | None
    random_state: dict


@dataclass
class LevelExtremes:
    """Of what the head predicted on one level: the largest finite magnitude (None: none is), its class, and how many
    are not finite."""

    largest: float | None = None
    class_id: int | None = None
    num_not_finite: int = 0


@dataclass
class Diagnosis:
    """What running a step again has shown. The gradients stay with the parameters.

    losses: dict name -> float. grad_norm: float, of all gradients, without the scale of the loss.
    num_positives: positive anchors; None where the model does not say.
    first_module: name of the first module whose result was not finite; None where all were.
    logits, deltas: dict name of the level -> LevelExtremes; empty where the model has no head of RetinaNet's form.
    largest_target: largest magnitude of a box target (a delta) of a positive anchor, nan if one is; None: unknown.
    grad_norms: dict name of the parameter -> float, not finite where the gradient is not.
    bad_weights: names of parameters and buffers that are not finite.
    bad_inputs: a line each.
    """

    losses: dict = field(default_factory=dict)
    grad_norm: float = 0.0
    num_positives: int | None = None
    first_module: str | None = None
    logits: dict = field(default_factory=dict)
    deltas: dict = field(default_factory=dict)
    largest_target: float | None = None
    grad_norms: dict = field(default_factory=dict)
    bad_weights: list = field(default_factory=list)
    bad_inputs: list = field(default_factory=list)

    @property
    def is_finite(self):
        """Whether the step would have been applied."""
        return math.isfinite(self.grad_norm) and all(map(math.isfinite, self.losses.values()))

    @property
    def bad_gradients(self):
        """Names of parameters whose gradient is not finite."""
        return [name for name, norm in self.grad_norms.items() if not math.isfinite(norm)]


def diagnose(model, step):
    """Run a step again. Afterwards the model has its gradients, and everything else is as before.

    Args:
        model: in training, not within ``DistributedDataParallel``.
        step: StepSnapshot

    Returns:
        Diagnosis
    """
    from retina_plugin.engine.accumulation import add_gradients

    result = Diagnosis(bad_inputs=[line for image in step.batch for line in input_problems(image)])
    result.bad_weights = [name for name, value in model.state_dict().items() if not _is_finite(value)]
    divisor = None if step.divisor is None else torch.tensor(step.divisor, device=next(model.parameters()).device)
    rollback = Rollback(model)
    rollback.remember()
    set_torch_random_state(step.random_state)
    model.zero_grad()
    hooks = _watch(model, result)
    try:
        with EventStorage(step.iteration):
            ran = add_gradients(
                model,
                step.batch,
                step.num_parts,
                precision=step.precision,
                scale_loss=lambda loss: loss * step.loss_scale,
                divisor=divisor,
            )
    finally:
        for hook in hooks:
            hook.remove()
        rollback.put_back()
    result.losses = {name: loss.item() for name, loss in ran.losses.items()}
    result.num_positives = None if ran.num_positives is None else int(ran.num_positives)
    result.grad_norms = {
        name: (p.grad.norm() / step.loss_scale).item() for name, p in model.named_parameters() if p.grad is not None
    }
    result.grad_norm = math.sqrt(sum(norm * norm for norm in result.grad_norms.values()))
    return result


def input_problems(image):
    """What is wrong with an image as the model takes it: a line a problem."""
    name = image_name(image)
    if "image" in image and not _is_finite(image["image"]):
        yield f"{name}: {int((~image['image'].isfinite()).sum())} values of its pixels are not finite"
    for i, box in enumerate(_boxes(image)):
        width, height = box[2] - box[0], box[3] - box[1]
        if not all(map(math.isfinite, box)):
            yield f"{name}: box {i} has coordinates that are not finite: {box}"
        elif width <= 0 or height <= 0:
            yield f"{name}: box {i} is degenerate, {width:g} x {height:g} pixels: {box}"


def image_name(image):
    """An image's id and file, as far as it has them."""
    known = [f"id {image['image_id']}"] if "image_id" in image else []
    return " ".join([*known, str(image["file_name"])] if "file_name" in image else known) or "an image without a name"


def _boxes(image):
    instances = image.get("instances")
    return instances.gt_boxes.tensor.tolist() if instances is not None and instances.has("gt_boxes") else []


def _watch(model, result):
    """Hooks that write into the diagnosis while the model runs."""

    def find_first(name):
        def hook(module, inputs, output):
            if result.first_module is None and not _is_finite(output):
                result.first_module = name or type(module).__name__

        return hook

    hooks = [module.register_forward_hook(find_first(name)) for name, module in model.named_modules()]
    children = dict(model.named_children())
    if "head" in children and hasattr(model, "num_classes"):
        hooks.append(children["head"].register_forward_hook(_predictions_hook(model, result)))
    if hasattr(children.get("box_regression_loss"), "encode"):
        hooks.append(children["box_regression_loss"].register_forward_pre_hook(_targets_hook(result)))
    return hooks


def _predictions_hook(model, result):
    def hook(head, inputs, output):
        logits, deltas = output
        names = getattr(model, "head_in_features", None) or range(len(logits))
        for by_level, predictions, num in ((result.logits, logits, model.num_classes), (result.deltas, deltas, 4)):
            for level, prediction in zip(names, predictions):
                _add_extremes(by_level.setdefault(str(level), LevelExtremes()), prediction.detach(), num)

    return hook


def _add_extremes(extremes, prediction, num_of_an_anchor):
    """prediction: (N, A * num_of_an_anchor, H, W), anchor-major."""
    finite = prediction.isfinite()
    extremes.num_not_finite += int((~finite).sum())
    largest, channel = torch.where(finite, prediction.abs(), -1).amax(dim=(0, 2, 3)).max(dim=0)
    if largest.item() >= 0 and (extremes.largest is None or largest.item() > extremes.largest):
        extremes.largest, extremes.class_id = largest.item(), channel.item() % num_of_an_anchor


def _targets_hook(result):
    def hook(loss, inputs):
        _, anchors, gt_boxes, positive = inputs
        targets = loss.encode(gt_boxes, anchors)[positive].abs()
        if targets.numel():
            largest = targets.max().item()  # nan if one is
            known = result.largest_target
            result.largest_target = largest if known is None or not known >= largest else known

    return hook


def _is_finite(value):
    """Whether all numbers in tensors, and in containers and structures of them, are finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not hasattr(value, "tensor") or _is_finite(value.tensor)
