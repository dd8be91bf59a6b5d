"""Finds out what is wrong with a step whose losses, gradients or buffers are not finite, by running it again."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from retina_plugin.core.rng import set_torch_random_state
from retina_plugin.core.rollback import Rollback
from retina_plugin.core.text import list_some, one_line
from retina_plugin.diagnostics.snapshot import StepSnapshot
from retina_plugin.modeling.gradients import compute_gradients
from retina_plugin.modeling.head import as_head_output

_MOST_IMAGES, _MOST_INPUTS, _MOST_NAMES = 8, 5, 4  # in a report


@dataclass
class LevelExtremes:
    """The largest finite magnitude of a level's predictions (None: none is), its class, and how many are not finite."""

    largest: float | None = None
    class_id: int | None = None
    num_not_finite: int = 0


@dataclass
class StepDiagnosis:
    """What running a step again has shown. The gradients stay with the parameters.

    Attributes:
        losses: by name.
        grad_norm: of all gradients, without the scale of the loss.
        num_positives: positive anchors; None if the model does not tell.
        first_module: name of the first module whose result was not finite; None if all were.
        logits, deltas: by level; empty if the model has no head of RetinaNet's form.
        largest_target: largest magnitude of a box target (a delta) of a positive anchor, nan if one is; None: unknown.
        grad_norms: by parameter, not finite where the gradient is not.
        bad_weights: names of parameters and buffers that are not finite.
        bad_buffers: names of buffers that the step makes not finite, such as statistics of a norm, first to last.
        bad_inputs: a line each.
    """

    losses: dict[str, float] = field(default_factory=dict)
    grad_norm: float = 0.0
    num_positives: int | None = None
    first_module: str | None = None
    logits: dict[str, LevelExtremes] = field(default_factory=dict)
    deltas: dict[str, LevelExtremes] = field(default_factory=dict)
    largest_target: float | None = None
    grad_norms: dict[str, float] = field(default_factory=dict)
    bad_weights: list[str] = field(default_factory=list)
    bad_buffers: list[str] = field(default_factory=list)
    bad_inputs: list[str] = field(default_factory=list)

    @property
    def is_finite(self) -> bool:
        """Whether the step would have been applied."""
        values = (self.grad_norm, *self.losses.values())
        return all(map(math.isfinite, values)) and not self.bad_buffers

    @property
    def bad_gradients(self) -> list[str]:
        """Names of parameters whose gradient is not finite."""
        return [name for name, norm in self.grad_norms.items() if not math.isfinite(norm)]

    def describe(self, step: StepSnapshot) -> list[str]:
        """Say in lines what is known of the step."""
        lines = ["images: " + list_some([image_name(image) for image in step.batch], _MOST_IMAGES)]
        lines += [f"input: {line}" for line in self.bad_inputs[:_MOST_INPUTS]]
        if self.bad_weights:
            lines.append(f"weights that are not finite already: {list_some(self.bad_weights, _MOST_NAMES)}")
        if self.first_module is not None:
            lines.append(f"first module whose result is not finite: {self.first_module}")
        if self.bad_buffers:
            lines.append(f"buffers that the step makes not finite: {list_some(self.bad_buffers, _MOST_NAMES)}")
        if self.num_positives is not None:
            lines.append(f"positive anchors: {self.num_positives}")
        for what, by_level in (("logit", self.logits), ("predicted box delta", self.deltas)):
            finite = [(x.largest, level, x.class_id) for level, x in by_level.items() if x.largest is not None]
            if finite:
                largest, level, class_id = max(finite, key=lambda item: item[0])
                of_class = f", class {class_id}" if what == "logit" else ""
                lines.append(f"largest {what}: {largest:.3g} (level {level}{of_class})")
            elif by_level:
                lines.append(f"largest {what}: none is finite")
        if self.largest_target is not None:
            lines.append(f"largest box target: {self.largest_target:.3g}")
        if self.bad_gradients:
            number = f"{len(self.bad_gradients)} of {len(self.grad_norms)}"
            nearest_to_loss = self.bad_gradients[::-1]
            lines.append(
                f"gradients that are not finite: {number} parameters: {list_some(nearest_to_loss, _MOST_NAMES)}"
            )
        if self.is_finite:
            lines.append("run again, the step is finite")
        return lines


def diagnose_step(model: nn.Module, step: StepSnapshot) -> StepDiagnosis:
    """Run a step again. Afterwards the model has its gradients, and everything else is as before.

    Args:
        model: in training, not within ``DistributedDataParallel``.
        step: the step.
    """
    result = StepDiagnosis(bad_inputs=[line for image in step.batch for line in input_problems(image)])
    result.bad_weights = [name for name, value in model.state_dict().items() if not _is_finite(value)]
    divisor = None if step.divisor is None else torch.tensor(step.divisor, device=next(model.parameters()).device)
    rollback = Rollback(model)
    rollback.save()
    set_torch_random_state(step.random_state)
    model.zero_grad()
    hooks = _register_hooks(model, result)
    try:
        with EventStorage(step.iteration):
            ran = compute_gradients(
                model,
                step.batch,
                step.num_micro_batches,
                precision=step.precision,
                scale_loss=lambda loss: loss * step.loss_scale,
                divisor=divisor,
            )
    finally:
        for hook in hooks:
            hook.remove()
        rollback.restore()
    result.losses = {name: loss.item() for name, loss in ran.losses.items()}
    result.num_positives = None if ran.num_positives is None else int(ran.num_positives.sum())
    result.grad_norms = {
        name: (p.grad.norm() / step.loss_scale).item() for name, p in model.named_parameters() if p.grad is not None
    }
    result.grad_norm = math.sqrt(sum(norm * norm for norm in result.grad_norms.values()))
    return result


def input_problems(image: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each thing that is wrong with an image as the model takes it."""
    name = image_name(image)
    if "image" in image and not _is_finite(image["image"]):
        yield f"{name}: {int((~image['image'].isfinite()).sum())} values of its pixels are not finite"
    instances = image.get("instances")
    boxes = instances.gt_boxes.tensor.tolist() if instances is not None and instances.has("gt_boxes") else []
    for i, box in enumerate(boxes):
        width, height = box[2] - box[0], box[3] - box[1]
        if not all(map(math.isfinite, box)):
            yield f"{name}: box {i} has coordinates that are not finite: {box}"
        elif width <= 0 or height <= 0:
            yield f"{name}: box {i} is degenerate, {width:g} x {height:g} pixels: {box}"


def image_name(image: dict[str, Any]) -> str:
    """An image's id, file, and tile of the file, as far as it has them."""
    known = [f"id {image['image_id']}"] if "image_id" in image else []
    known += [one_line(image["file_name"])] if "file_name" in image else []
    known += [f"tile {tuple(image['tile'])}"] if "tile" in image else []
    return " ".join(known) or "an image without a name"


def _register_hooks(model: nn.Module, result: StepDiagnosis) -> list[Any]:
    """Hooks that write into the diagnosis while the model runs."""

    bad_before = {name for name, value in model.named_buffers() if not _is_finite(value)}

    def find_first(name):
        def hook(module, inputs, output):
            if result.first_module is None and not _is_finite(output):
                result.first_module = name or type(module).__name__
            for buffer, value in module.named_buffers(name, recurse=False):
                if buffer not in bad_before and not _is_finite(value):
                    bad_before.add(buffer)
                    result.bad_buffers.append(buffer)

        return hook

    hooks = [module.register_forward_hook(find_first(name)) for name, module in model.named_modules()]
    children = dict(model.named_children())
    if "head" in children and hasattr(model, "num_classes"):
        hooks.append(children["head"].register_forward_hook(_predictions_hook(model, result)))
    if "box_loss" in children and hasattr(model, "box_coder"):
        hooks.append(children["box_loss"].register_forward_pre_hook(_targets_hook(model.box_coder, result)))
    return hooks


def _predictions_hook(model, result):
    def hook(head, inputs, output):
        logits, deltas = as_head_output(output)[:2]
        names = getattr(model, "head_in_features", None) or range(len(logits))
        for by_level, predictions, num in ((result.logits, logits, model.num_classes), (result.deltas, deltas, 4)):
            for level, prediction in zip(names, predictions):
                _add_extremes(by_level.setdefault(str(level), LevelExtremes()), prediction.detach(), num)

    return hook


def _add_extremes(extremes: LevelExtremes, prediction: Tensor, num_of_an_anchor: int) -> None:
    """prediction: (N, A * num_of_an_anchor, H, W), anchor-major."""
    finite = prediction.isfinite()
    extremes.num_not_finite += int((~finite).sum())
    largest, channel = torch.where(finite, prediction.abs(), -1).amax(dim=(0, 2, 3)).max(dim=0)
    if largest.item() >= 0 and (extremes.largest is None or largest.item() > extremes.largest):
        extremes.largest, extremes.class_id = largest.item(), int(channel) % num_of_an_anchor


def _targets_hook(box_coder, result):
    def hook(loss, inputs):
        _, anchors, gt_boxes, positive = inputs
        targets = box_coder.encode(gt_boxes, anchors)[positive].abs()
        if targets.numel():
            largest = targets.max().item()  # nan if one is
            known = result.largest_target
            result.largest_target = largest if known is None or not known >= largest else known

    return hook


def _is_finite(value: object) -> bool:
    """Whether all numbers in tensors, and in containers and structures of them, are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not hasattr(value, "tensor") or _is_finite(value.tensor)
