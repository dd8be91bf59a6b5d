"""What a line of the log says beyond losses and learning rate."""

import resource
import sys

import torch
from detectron2.engine import HookBase


class Progress(HookBase):
    """Puts epochs, images a second, memory and the share of images without boxes where all writers find them.

    For the main process, whose images the share is of.
    """

    def __init__(self, period, images_per_iteration, training_set_size=None):
        """
        Args:
            period: iterations between two lines of the log.
            images_per_iteration: of all processes.
            training_set_size: in images; None: unknown, and there are no epochs.
        """
        self.period = period
        self.images_per_iteration = images_per_iteration
        self.training_set_size = training_set_size
        self._images = self._empty = 0
        self._handle = None

    def before_train(self):
        # Counts of boxes are known to the host: nothing waits for a GPU.
        self._handle = self.trainer.model.register_forward_pre_hook(self._count)

    def after_train(self):
        if self._handle is not None:  # None if another hook ended the training before it began
            self._handle.remove()

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self.period and done != self.trainer.max_iter:
            return
        values = {"max_mem_mb": _max_memory()}
        if self.training_set_size:
            values["epoch"] = done * self.images_per_iteration / self.training_set_size
        if "time" in self.trainer.storage.histories():  # not in the first iterations
            time = self.trainer.storage.history("time").avg(self.period)
            values["images_per_second"] = self.images_per_iteration / time
        if self._images:
            values["images_without_boxes"] = self._empty / self._images
        self._images = self._empty = 0
        self.trainer.storage.put_scalars(**values, smoothing_hint=False)

    def _count(self, model, inputs):
        if torch.is_grad_enabled():  # not in an evaluation
            self._images += len(inputs[0])
            self._empty += sum(len(image.get("instances", ())) == 0 for image in inputs[0])


def _max_memory():
    """Of the GPU as torch allocated it, or of this process, in MB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
