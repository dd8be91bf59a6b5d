"""The few lines that somebody reads who starts a training."""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from torch import nn

from retina_plugin.core.text import one_line
from retina_plugin.engine.schedule import schedule_table


def start_summary(cfg: CfgNode, model: nn.Module, num_images: int | None) -> Iterator[str]:
    """Yield lines about model, data and schedule.

    Args:
        cfg: the configuration.
        model: the model that is trained.
        num_images: of the training set, or its tiles; None if unknown.
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    frozen = f", {trained / 1e6:.1f} M of them trained" if trained < total else ""
    yield f"Model: {cfg.MODEL.META_ARCHITECTURE} with {cfg.MODEL.BACKBONE.NAME}, {total / 1e6:.1f} M parameters{frozen}"
    train, test = (", ".join(map(one_line, names)) for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST))
    what = "tiles and small images" if cfg.INPUT.TILE.SIZE else "images"
    images = "" if num_images is None else f" ({num_images} {what})"
    yield f"Data: trained on {train}{images}, {f'evaluated on {test}' if test else 'not evaluated'}"
    if num_images:
        yield schedule_table(cfg, num_images)


def describe_device(cfg: CfgNode) -> str:
    """Return a sentence about what the model runs on."""
    number = torch.get_num_threads()
    threads = f"with {number} thread{'s' * (number > 1)} a process (OMP_NUM_THREADS sets it)"
    if cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available():
        return f"Running on {torch.cuda.get_device_name()}, {threads}."
    if not torch.cuda.is_available():
        return f"There is no GPU here: running on the CPU (MODEL.DEVICE cpu) {threads}."
    return f"Running on {cfg.MODEL.DEVICE} {threads}."
