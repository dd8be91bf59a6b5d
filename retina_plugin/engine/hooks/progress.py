"""Epochs, images per second, memory and the share of images without boxes."""

import resource
import sys
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import nn


class Progress(HookBase):
    """Puts numbers about the progress of a training into the event storage. It counts the images of its own rank."""

    def __init__(self, period: int, images_per_iteration: int, training_set_size: int | None = None):
        """
        Args:
            period: iterations between two lines of the log.
            images_per_iteration: of all ranks.
            training_set_size: in images; None if it is unknown, then epochs are not logged.
        """
        self.period, self.images_per_iteration = period, images_per_iteration
        self.training_set_size = training_set_size
        self._num_images = self._num_empty = 0
        self._handle: Any = None

    def before_train(self) -> None:
        self._handle = self.trainer.model.register_forward_pre_hook(self._count)

    def after_train(self) -> None:
        if self._handle is not None:  # None if another hook ended the training before it began
            self._handle.remove()

    def after_step(self) -> None:
        done, storage = self.trainer.iter + 1, self.trainer.storage
        if done % self.period and done != self.trainer.max_iter:
            return
        values = {"max_mem_mb": _max_memory()}
        if self.training_set_size:
            values["epoch"] = done * self.images_per_iteration / self.training_set_size
        if "time" in storage.histories():  # Detectron2 does not time the first iterations
            values["images_per_second"] = self.images_per_iteration / storage.history("time").avg(self.period)
        if self._num_images:
            values["images_without_boxes"] = self._num_empty / self._num_images
        self._num_images = self._num_empty = 0
        storage.put_scalars(**values, smoothing_hint=False)

    def state_dict(self) -> dict[str, int]:
        return {"num_images": self._num_images, "num_empty": self._num_empty}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._num_images, self._num_empty = state["num_images"], state["num_empty"]

    def _count(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():  # not in an evaluation
            self._num_images += len(inputs[0])
            self._num_empty += sum(len(image.get("instances", ())) == 0 for image in inputs[0])


def _max_memory() -> float:
    """Return the peak memory of the GPU as torch allocated it, or else of this process, in MB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
