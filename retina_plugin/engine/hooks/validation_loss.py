"""The losses of training, computed on other data, with a model that does not notice."""

import contextlib
import logging
import math
import random

import numpy as np
import torch
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from retina_plugin.core.errors import ConfigError
from retina_plugin.modeling.precision import autocast


class ValidationLoss:
    """The mean losses of a ``FocalRetinaNet`` on the sets of ``DATASETS.TEST``, as a function for ``EvalHook``.

    An image has a sum of losses over its anchors, l_i, and p_i positive anchors. Both losses of a set are

        sum_i l_i / max(1, sum_i p_i)

    which depends neither on the size of batches nor on the number of processes. A mean of the losses that training logs
    would: each of those is divided by the positives of its batch, or by a moving average. Images come as in evaluation,
    one at a time and without augmentation; boxes of crowds are left out, as in training; images without boxes count.

    Normalization layers and dropout are as in inference, the precision is that of training. Parameters, buffers,
    gradients, random numbers and what is logged of a step stay as they are.
    """

    def __init__(self, cfg, model):
        """
        Args:
            cfg: a configuration.
            model: a ``FocalRetinaNet``, possibly in ``DistributedDataParallel``.

        Raises:
            ConfigError: a set has no boxes at all.
        """
        self._model = getattr(model, "module", model)
        self._precision = cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else "fp32"
        self._loaders = {name: _labelled_loader(cfg, name) for name in cfg.DATASETS.TEST}

    def __call__(self):
        """All processes call it.

        Returns:
            On the main process {"validation": {"loss_cls": float, "loss_box_reg": float, "total_loss": float}}, for
            several sets a dict of these by name; {} on the others.
        """
        results = {}
        for name, loader in self._loaders.items():
            with _random_numbers_untouched(), _losses_of_inference(self._model) as count_positives:
                images = [self._image(batch, count_positives) for batch in loader]
            images = [image for part in comm.gather(images) for image in part]
            if images:
                results[name] = _mean(name, images)
        if not results:
            return {}
        return {"validation": results if len(self._loaders) > 1 else next(iter(results.values()))}

    def _image(self, batch, count_positives):
        with autocast(self._model.device.type, self._precision):
            losses = self._model(batch)
        return {name: loss.item() for name, loss in losses.items()}, count_positives.last.item()


def _mean(name, images):
    positives = sum(count for _, count in images)
    # fsum is exact, so that the order of images, and with it the number of processes, does not matter.
    losses = {loss: math.fsum(sums[loss] for sums, _ in images) / max(1, positives) for loss in images[0][0]}
    losses["total_loss"] = sum(losses.values())
    logging.getLogger(__name__).info(
        "Validation loss on %s (%d images, %d positive anchors): %s",
        *(name, len(images), positives, "  ".join(f"{loss}: {value:.4g}" for loss, value in losses.items())),
    )
    return losses


def _labelled_loader(cfg, name):
    records = get_detection_dataset_dicts([name], filter_empty=False)
    if not any(record.get("annotations") for record in records):
        raise ConfigError([
            f"TEST.VAL_LOSS_PERIOD is {cfg.TEST.VAL_LOSS_PERIOD}, but data set '{name}' of DATASETS.TEST has no boxes "
            "to compute a loss with. Set it to 0, or name a set with annotations"
        ])  # fmt: skip
    # The mapper of evaluation, but for the annotations: without is_train it drops them.
    mapper = DatasetMapper(cfg, is_train=False)
    mapper.is_train = True
    return build_detection_test_loader(records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


class _CountPositives(nn.Module):
    """A loss normalizer that divides by 1 and remembers the count."""

    def forward(self, num_positives):
        self.last = num_positives
        return torch.ones((), device=num_positives.device)


@contextlib.contextmanager
def _losses_of_inference(model):
    """Let a detector return losses, not divided by anything, while its layers stay in inference."""
    modes = {module: module.training for module in model.modules()}
    normalizer, vis_period = model.loss_normalizer, model.vis_period
    count_positives = _CountPositives()
    try:
        model.eval()
        model.training = True  # of the detector alone
        model.loss_normalizer, model.vis_period = count_positives, 0
        with torch.no_grad(), EventStorage():
            yield count_positives
    finally:
        model.loss_normalizer, model.vis_period = normalizer, vis_period
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _random_numbers_untouched():
    # A DataLoader draws a seed for its workers whenever it starts.
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
