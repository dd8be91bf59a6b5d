"""Checks of the keys of a training: processes, precision, steps."""

import math
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import GradientClipType

from retina_plugin.core.text import did_you_mean


def process_problems(cfg: CfgNode, num_gpus: int, num_machines: int, eval_only: bool) -> Iterator[str]:
    """Yield a line for each problem with several processes: devices, and images that they cannot share equally."""
    world_size = num_gpus * num_machines
    if world_size == 1:
        return
    device = cfg.MODEL.DEVICE
    asked = f"--num-gpus {num_gpus}" + (f" --num-machines {num_machines}" if num_machines > 1 else "")
    visible = torch.cuda.device_count()
    if device not in ("cuda", "cpu"):
        hint = ": every process would take that one" if device.startswith("cuda:") else ""
        yield f"{asked} with MODEL.DEVICE {device}{hint}. Set it to cuda (a GPU for each process) or cpu"
    elif device == "cuda" and visible < num_gpus:
        yield (
            f"{asked}: torch {torch.__version__} sees {visible} GPUs on this machine. Ask for as many as there are; "
            f"MODEL.DEVICE cpu runs {num_gpus} processes on the CPU, --num-gpus 1 alone trains on the CPU where there "
            "is no GPU"
        )
    # With a reference, Detectron2 scales the images of a step from its number of processes to ours.
    shares = cfg.SOLVER.REFERENCE_WORLD_SIZE or world_size
    if not eval_only and cfg.SOLVER.IMS_PER_BATCH % shares:
        below = cfg.SOLVER.IMS_PER_BATCH // shares * shares
        yield (
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, the images of all processes together, which "
            f"{shares} processes cannot share equally. Set it to {f'{below} or {below + shares}' if below else shares}"
        )


def precision_problems(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    """Yield a line if training cannot use, or does not turn on, the configured precision."""
    if eval_only:
        return
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "fp16" and not (on_gpu and torch.cuda.is_available()):
        yield (
            "SOLVER.AMP.ENABLED with SOLVER.AMP.PRECISION fp16 needs a GPU: Detectron2 scales gradients on CUDA alone. "
            "Set SOLVER.AMP.PRECISION to bf16, which scales none and trains anywhere, or SOLVER.AMP.ENABLED to False"
        )
    if amp.PRECISION == "bf16" and not amp.ENABLED:
        yield (
            "SOLVER.AMP.PRECISION is bf16, but SOLVER.AMP.ENABLED is False, so training would be in fp32. "
            "Set SOLVER.AMP.ENABLED to True, or remove SOLVER.AMP.PRECISION"
        )


def step_problems(cfg: CfgNode, num_processes: int, eval_only: bool) -> Iterator[str]:
    """Yield a line for each problem with a training step: micro-batches, non-finite steps, clipping, determinism."""
    if eval_only:
        return
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    yield from _determinism_problems(cfg)
    micro_batches = solver.ACCUMULATE_STEPS
    divisor = num_processes * micro_batches
    if micro_batches < 1:
        yield f"SOLVER.ACCUMULATE_STEPS is {micro_batches}; a step has at least 1 micro-batch"
    elif micro_batches > 1 and solver.IMS_PER_BATCH % divisor:
        processes = f"{num_processes} processes with " if num_processes > 1 else ""
        yield (
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, which {processes}SOLVER.ACCUMULATE_STEPS {micro_batches} "
            f"do not divide evenly. It counts the images of a whole step: set it to a multiple of {divisor}, such as "
            f"{-(-solver.IMS_PER_BATCH // divisor) * divisor}, or change SOLVER.ACCUMULATE_STEPS"
        )
    if solver.MAX_NONFINITE_STEPS < 0:
        yield (
            f"SOLVER.MAX_NONFINITE_STEPS is {solver.MAX_NONFINITE_STEPS}; it is a number of steps, 0 to stop with the "
            "first that is not finite"
        )
    if not clip.ENABLED:
        return
    known = [kind.value for kind in GradientClipType]
    if clip.CLIP_TYPE not in known:
        yield (
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is '{clip.CLIP_TYPE}', which is none of {', '.join(known)}."
            f"{did_you_mean(clip.CLIP_TYPE, known)}"
        )
    if not 0 < clip.CLIP_VALUE < math.inf:
        yield (
            f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {clip.CLIP_VALUE}; set it to a finite number > 0. grad_norm in the "
            "log shows the usual size of a gradient"
        )
    if clip.CLIP_TYPE == "norm" and not clip.NORM_TYPE > 0:
        yield f"SOLVER.CLIP_GRADIENTS.NORM_TYPE is {clip.NORM_TYPE}; the order of a norm is a number > 0, usually 2.0"


def _determinism_problems(cfg: CfgNode) -> Iterator[str]:
    if not cfg.DETERMINISTIC:
        return
    if cfg.SEED < 0:
        yield f"DETERMINISTIC is True, but SEED is {cfg.SEED}, another one in each run. Set SEED to a number from 0 on"
    if cfg.CUDNN_BENCHMARK:
        yield "DETERMINISTIC is True, but CUDNN_BENCHMARK lets cuDNN choose operators anew in each run. Turn one off"
