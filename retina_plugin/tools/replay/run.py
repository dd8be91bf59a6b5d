"""Runs a training step again from its file, and prints what is found."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import nn

from retina_plugin.config import get_cfg, merge_config, merge_values
from retina_plugin.config.imports import add_imports
from retina_plugin.config.yaml_file import parse_yaml
from retina_plugin.core.errors import ConfigError, UserError
from retina_plugin.diagnostics.snapshot import StepSnapshot, read_snapshot
from retina_plugin.diagnostics.step_diagnosis import StepDiagnosis, diagnose_step, image_name
from retina_plugin.modeling.gradients import split_batch


def replay(
    file: str | Path,
    *,
    device: str | None = None,
    precision: str | None = None,
    imports: Iterable[str] = (),
    opts: Sequence[Any] = (),
) -> bool:
    """Run a step again, print what is found, and return whether losses and gradients are finite this time.

    Args:
        file: ``OUTPUT_DIR/divergence/iteration_N_rank_R.pth``.
        device: None for a GPU if there is one.
        precision: of the forward pass; None for that of the training.
        imports, opts: modules as of ``--import`` and overrides, beyond the configuration of the training.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is something else, or its configuration or model cannot be used.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: training writes them to OUTPUT_DIR/divergence")
    step, data = read_snapshot(file)
    try:
        return _replay(file, step, data, device, precision, imports, opts)
    except (ArithmeticError, LookupError, AssertionError, AttributeError, RuntimeError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:500]
        raise ValueError(f"{file}: the step cannot be run ({type(error).__name__}: {reason})") from error


def _replay(
    file: Path,
    step: StepSnapshot,
    data: dict[str, Any],
    device: str | None,
    precision: str | None,
    imports: Iterable[str],
    opts: Sequence[Any],
) -> bool:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = _build_model(file, data, device, imports, opts)
    step = step._replace(precision=precision or step.precision)
    if step.precision != "fp16":
        step = step._replace(loss_scale=1.0)
    if opts:  # other settings may have other positives
        step = step._replace(divisor=None)
    _print_recorded(step, data, device, opts)
    diagnosis = diagnose_step(model, step)
    _print_diagnosis(diagnosis, step)
    _print_images(model, step)
    print("\nThe result is " + ("finite here." if diagnosis.is_finite else "not finite, as in the training."))
    return diagnosis.is_finite


def _build_model(
    file: Path, data: dict[str, Any], device: str, imports: Iterable[str], opts: Sequence[Any]
) -> nn.Module:
    cfg = get_cfg()
    add_imports(cfg, imports)
    folder = file.resolve().parent
    run_folder = folder.parent if folder.name == "divergence" else folder
    merge_values(cfg, parse_yaml(data["config"], f"the configuration in {file}"), str(file), run_folder)
    merge_config(cfg, opts=opts)
    cfg.MODEL.DEVICE = device
    try:
        model = build_model(cfg)
        model.load_state_dict(data["model"])
    except ConfigError:
        raise
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(" ".join(map(str, error.args)).split())[:500]
        raise ValueError(f"the model of the step cannot be built: {reason}") from error
    return model.train()


def _print_recorded(step: StepSnapshot, data: dict[str, Any], device: str, opts: Sequence[Any]) -> None:
    num_micro_batches = len(split_batch(step.batch, step.num_micro_batches))
    print(
        f"Iteration {step.iteration} of process {data['rank']} of {data['num_processes']}, learning rate "
        f"{data['learning_rate']:g}, {len(step.batch)} images in {num_micro_batches} micro-batches."
    )
    print(f"In the training: {_values(data['values'])}")
    tried = "".join(f", {key} {value}" for key, value in zip(opts[::2], opts[1::2]))
    print(f"Again, on {device} in {step.precision}{tried}:")


def _print_diagnosis(diagnosis: StepDiagnosis, step: StepSnapshot) -> None:
    print(f"Now: {_values({**diagnosis.losses, 'grad_norm': diagnosis.grad_norm})}")
    for line in diagnosis.describe(step):
        print(line)
    if diagnosis.logits:
        print("\nlevel   largest logit  class  not finite   largest delta  not finite")
        for level, logit in diagnosis.logits.items():
            delta = diagnosis.deltas[level]
            class_id = "-" if logit.class_id is None else logit.class_id
            print(
                f"{level:7} {_number(logit.largest):>13}  {class_id:>5}  {logit.num_not_finite:10}   "
                f"{_number(delta.largest):>13}  {delta.num_not_finite:10}"
            )
    print("\nlargest gradients (norm)")
    not_finite_first = sorted(diagnosis.grad_norms.items(), key=lambda item: (math.isfinite(item[1]), -item[1]))
    for name, norm in not_finite_first[:10]:
        print(f"{norm:13.4g}  {name}")


def _print_images(model: nn.Module, step: StepSnapshot) -> None:
    """Run every image by itself, padded and divided as in its batch."""
    print("\nimages by themselves" + (" (their part of the losses)" if step.divisor is not None else ""))
    for (image,) in split_batch(step.batch, len(step.batch)):
        pixels = " x ".join(str(size) for size in reversed(image["image"].shape[-2:]))
        print(f"{image_name(image)}, {pixels} pixels")
        try:
            alone = diagnose_step(model, step._replace(batch=[image], num_micro_batches=1))
            print(f"  losses: {_values({**alone.losses, 'grad_norm': alone.grad_norm})}")
        except ValueError as error:  # batch norm in training needs several values
            print(f"  the model cannot run it: {error}")
        _print_boxes(image)


def _print_boxes(image: dict[str, Any]) -> None:
    instances = image.get("instances")
    if instances is None or len(instances) == 0:
        print("  no boxes")
        return
    for i, (x1, y1, x2, y2) in enumerate(instances.gt_boxes.tensor.tolist()):
        flaw = ""
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            flaw = "  NOT FINITE"
        elif x2 <= x1 or y2 <= y1:
            flaw = "  DEGENERATE"
        class_id = f"class {int(instances.gt_classes[i])}" if instances.has("gt_classes") else "no class"
        print(f"  box {i}: {class_id}, {x2 - x1:g} x {y2 - y1:g} pixels at ({x1:g}, {y1:g}){flaw}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _values(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in values.items())
