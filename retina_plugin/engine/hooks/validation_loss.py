"""The losses of training, computed on the test sets."""

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.data import DataLoader

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.rng import preserve_random_state
from retina_plugin.data.loading import explain_loading
from retina_plugin.data.reading import EvaluationMapper
from retina_plugin.data.tiles import TileMapper, tile_records
from retina_plugin.modeling.precision import autocast


class ValidationLoss:
    """Computes the mean losses of a ``FocalRetinaNet`` on ``DATASETS.TEST``, as a function for ``EvalHook``.

    Image i has p_i positive anchors and a sum l_i of a loss over its anchors. The loss of a set,

        sum_i l_i / max(1, sum_i p_i)

    depends neither on the batch size nor on the number of ranks. Images are read as in evaluation, without
    augmentation; crowd boxes are left out as in training; images without boxes count. With ``TEST.TILE.SIZE``, the
    images are tiles, with boxes as in training on tiles. The model is in evaluation mode and in the precision of
    training. Its state, the random state and the event storage stay as they are.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        """
        Args:
            model: a ``FocalRetinaNet``, possibly in ``DistributedDataParallel``.

        Raises:
            ConfigError: a set has no boxes.
        """
        self._model: Any = getattr(model, "module", model)
        self._precision = cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else "fp32"
        self._loaders = {name: _build_labeled_loader(cfg, name) for name in cfg.DATASETS.TEST}

    def __call__(self) -> dict[str, Any]:
        """Compute the losses. All ranks call this.

        Returns:
            On the main rank {"validation": losses}, or {"validation": {set: losses}} for several sets, with the losses
            "loss_cls", "loss_box_reg" and "total_loss", their sum; {} on the other ranks.
        """
        results = {}
        for name, loader in self._loaders.items():
            with preserve_random_state(include_gpu=True), _evaluation_mode(self._model):
                images = [self._sums(batch) for batch in loader]
            images = [image for part in comm.gather(images) for image in part]
            if images:
                results[name] = _mean(name, images)
        if not results:
            return {}
        return {"validation": results if len(self._loaders) > 1 else next(iter(results.values()))}

    def _sums(self, batch: list[dict[str, Any]]) -> tuple[dict[str, float], int]:
        targets = self._model.assign(batch)
        with autocast(self._model.device.type, self._precision):
            losses = self._model.compute_losses(batch, targets, divisor=1.0)
        positives = targets.num_positives(self._model.num_classes)
        return {name: loss.item() for name, loss in losses.items()}, int(positives)


def _mean(name: str, images: list[tuple[dict[str, float], int]]) -> dict[str, float]:
    positives = sum(count for _, count in images)
    # fsum is exact: neither the order of images nor the number of ranks matters.
    losses = {loss: math.fsum(sums[loss] for sums, _ in images) / max(1, positives) for loss in images[0][0]}
    losses["total_loss"] = sum(losses.values())
    logging.getLogger(__name__).info(
        "Validation loss on %s (%d images, %d positive anchors): %s",
        *(name, len(images), positives, "  ".join(f"{loss}: {value:.4g}" for loss, value in losses.items())),
    )
    return losses


def _build_labeled_loader(cfg: CfgNode, name: str) -> DataLoader:
    with explain_loading("DATASETS.TEST", [name]):
        records = get_detection_dataset_dicts([name], filter_empty=False)
    if not any(record.get("annotations") for record in records):
        raise ConfigError([
            f"TEST.VAL_LOSS_PERIOD is {cfg.TEST.VAL_LOSS_PERIOD}, but data set '{name}' of DATASETS.TEST has no boxes "
            "to compute a loss with. Set it to 0, or name a set with annotations"
        ])  # fmt: skip
    mapper = DatasetMapper(cfg, is_train=False)
    mapper.is_train = True  # keeps the annotations
    if cfg.TEST.TILE.SIZE:
        mapper, records = TileMapper(mapper), list(tile_records(records, cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP))
    return build_detection_test_loader(records, mapper=EvaluationMapper(mapper), num_workers=cfg.DATALOADER.NUM_WORKERS)


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Detectron2's ``inference_context``, but every module gets its own mode back, and nothing is logged."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), EventStorage():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
