"""Run a training step again whose losses or gradients were not finite, from the file that it left."""

import math
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from retina_plugin.config import add_retina_config, merge_config
from retina_plugin.core.errors import ConfigError
from retina_plugin.diagnostics.divergence import describe
from retina_plugin.diagnostics.snapshot import read_recording
from retina_plugin.diagnostics.step_diagnosis import diagnose, image_name
from retina_plugin.engine.accumulation import split_batch
from retina_plugin.modeling.precision import PRECISIONS


def add_arguments(parser):
    parser.epilog = (
        "Exit code 0: losses or gradients are not finite this time, either; 1: all are finite, or the file cannot be "
        "run (error: ...)."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="OUTPUT_DIR/divergence/iteration_N_rank_R.pth")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the forward pass (default: that of the training)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings to try, as for train_net.py")


def run(args):
    if not args.file.is_file():
        raise FileNotFoundError(f"no file {args.file}: training writes them to OUTPUT_DIR/divergence")
    step, data = read_recording(args.file)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = _build_model(data, device, args.opts)
    if args.precision is not None:
        step = step._replace(precision=args.precision)
    if step.precision != "fp16":
        step = step._replace(loss_scale=1.0)
    if args.opts:  # with which there may be other positives
        step = step._replace(divisor=None)
    _print_recorded(step, data, device, args.opts)
    diagnosis = diagnose(model, step)
    _print_now(diagnosis, step)
    _print_images(model, step)
    what = "The result is not finite, as in the training." if not diagnosis.is_finite else "The result is finite here."
    print(f"\n{what}")
    return 1 if diagnosis.is_finite else 0


def _build_model(data, device, opts):
    cfg = get_cfg()
    add_retina_config(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode.load_cfg(data["config"]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"its configuration has what this version does not know: {_text(error)}") from error
    merge_config(cfg, opts=opts)
    cfg.MODEL.DEVICE = device
    try:
        model = build_model(cfg)
        model.load_state_dict(data["model"])
    except ConfigError:
        raise
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"the model of the step cannot be built: {_text(error)}") from error
    return model.train()


def _text(error):
    return " ".join(" ".join(map(str, error.args)).split())[:500]


def _print_recorded(step, data, device, opts):
    print(
        f"Iteration {step.iteration} of process {data['rank']} of {data['num_processes']}, learning rate "
        f"{data['learning_rate']:g}, {len(step.batch)} images in {len(split_batch(step.batch, step.num_parts))} parts."
    )
    print(_values("In the training", data["values"]))
    tried = "".join(f", {key} {value}" for key, value in zip(opts[::2], opts[1::2]))
    print(f"Again, on {device} in {step.precision}{tried}:")


def _print_now(diagnosis, step):
    print(_values("Now", {**diagnosis.losses, "grad_norm": diagnosis.grad_norm}))
    for line in describe(diagnosis, step):
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
    # Those that are not finite come first.
    ordered = sorted(diagnosis.grad_norms.items(), key=lambda item: (math.isfinite(item[1]), -item[1]))
    for name, norm in ordered[:10]:
        print(f"{norm:13.4g}  {name}")


def _print_images(model, step):
    """Every image by itself, as large as in its batch and with the divisor of its batch."""
    print("\nimages by themselves" + (" (their part of the losses)" if step.divisor is not None else ""))
    for (image,) in split_batch(step.batch, len(step.batch)):
        pixels = " x ".join(str(size) for size in reversed(image["image"].shape[-2:]))
        print(f"{image_name(image)}, {pixels} pixels")
        try:
            alone = diagnose(model, step._replace(batch=[image], num_parts=1))
            print(f"  {_values('losses', {**alone.losses, 'grad_norm': alone.grad_norm})}")
        except ValueError as error:  # a batch norm in training wants several values
            print(f"  the model cannot run it: {error}")
        _print_boxes(image)


def _print_boxes(image):
    instances = image.get("instances")
    if instances is None or len(instances) == 0:
        print("  no boxes")
        return
    for i, (x1, y1, x2, y2) in enumerate(instances.gt_boxes.tensor.tolist()):
        size, what = f"{x2 - x1:g} x {y2 - y1:g}", ""
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            what = "  NOT FINITE"
        elif x2 <= x1 or y2 <= y1:
            what = "  DEGENERATE"
        class_id = f"class {int(instances.gt_classes[i])}" if instances.has("gt_classes") else "no class"
        print(f"  box {i}: {class_id}, {size} pixels at ({x1:g}, {y1:g}){what}")


def _number(value):
    return "-" if value is None else f"{value:.4g}"


def _values(title, values):
    return f"{title}: " + ", ".join(f"{name} {value:.6g}" for name, value in values.items())
