"""Runs a detector in torch, on what Detectron2's evaluation would give it."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation, convert_PIL_to_numpy
from detectron2.modeling import build_model
from PIL import Image

from retina_plugin.checkpoint import RetinaCheckpointer
from retina_plugin.checkpoint.run_folder import class_names_of_model, read_run_config, weights_of_run
from retina_plugin.config import checks, read_config, require_retina_config
from retina_plugin.config.coco_files import register_coco_files
from retina_plugin.core.errors import ConfigError
from retina_plugin.data.windows import ArrayWindows
from retina_plugin.modeling.inference.tiled import TiledInference
from retina_plugin.runtime.backend import ModelSource, Prepared, RawDetections


def read_model_config(source: ModelSource) -> CfgNode:
    """Return the configuration of a detector, with its weights in ``MODEL.WEIGHTS`` and a device that is there.

    Raises:
        ConfigError: the configuration cannot be read or used.
        CheckpointError: ``last_checkpoint`` of a run's folder names no file.
    """
    model, opts = source.model, list(source.opts)
    if isinstance(model, CfgNode):
        if opts or source.imports:
            raise ConfigError(["a CfgNode takes neither overrides nor imports: merge them into it"])
        cfg = model.clone()
        cfg.defrost()
        require_retina_config(cfg)
    elif os.path.isdir(model):
        cfg = read_run_config(model, opts, source.imports, allow_unsafe=source.allow_unsafe_yaml)
        if source.weights is None and "MODEL.WEIGHTS" not in opts[::2]:
            cfg.MODEL.WEIGHTS = weights_of_run(cfg)
    else:
        cfg = read_config(os.fspath(model), opts, source.imports, allow_unsafe=source.allow_unsafe_yaml)
        register_coco_files(cfg)
    if source.weights is not None:
        cfg.MODEL.WEIGHTS = os.fspath(source.weights)
    if source.device is not None:
        cfg.MODEL.DEVICE = source.device
    if problems := list(checks.value_problems(cfg, checks.values.JOB)):
        raise ConfigError(problems)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


class TorchBackend:
    """A model of Detectron2 with its weights, see :class:`~retina_plugin.runtime.backend.Backend`."""

    def __init__(self, cfg: CfgNode, lowest_score: float | None = None):
        """
        Args:
            cfg: see :func:`read_model_config`.
            lowest_score: the lowest score that is asked for; None for the model's own threshold.

        Raises:
            ConfigError: the model cannot be built.
            CheckpointError: the weights are missing, or not exactly those of the model.
        """
        cfg = cfg.clone()
        self.score_threshold = float(cfg.MODEL.RETINANET.SCORE_THRESH_TEST)
        if lowest_score is not None and lowest_score < self.score_threshold:
            # The model keeps scores above its threshold, and lowest_score itself is asked for.
            cfg.MODEL.RETINANET.SCORE_THRESH_TEST = float(np.nextafter(np.float32(lowest_score), np.float32(-1)))
        self._model = build_model(cfg).eval()
        checkpointer = RetinaCheckpointer(self._model, strict=True, allow_pickle=cfg.MODEL.WEIGHTS_ALLOW_PICKLE)
        self.class_names = tuple(class_names_of_model(cfg, checkpointer.load(cfg.MODEL.WEIGHTS)))
        self._tiled = TiledInference(cfg, self._model) if cfg.TEST.TILE.SIZE else None
        self._augmentations = T.AugmentationList(build_augmentation(cfg, is_train=False))
        self._format = cfg.INPUT.FORMAT
        self._longest = cfg.INPUT.MAX_SIZE_TEST
        self.description: dict[str, Any] = {
            "architecture": cfg.MODEL.META_ARCHITECTURE,
            "weights": cfg.MODEL.WEIGHTS,
            "device": str(cfg.MODEL.DEVICE),
            "precision": cfg.TEST.PRECISION,
        }

    def prepare(self, image: Image.Image) -> Prepared:
        """What Detectron2's ``DatasetMapper(cfg, is_train=False)`` does with an image that is read.

        With ``TEST.TILE.SIZE``, tiles are resized when they are due.
        """
        array = convert_PIL_to_numpy(image, self._format)
        if self._tiled is not None:
            return Prepared(ArrayWindows(array), image.height, image.width)
        pixels = T.AugInput(array)
        try:
            self._augmentations(pixels)
        except ValueError as error:  # of Pillow, for a side of 0 pixels
            size = f"{image.width}x{image.height} pixels"
            raise ValueError(
                f"INPUT.MAX_SIZE_TEST {self._longest} leaves no pixel of its shorter side ({size}; {error})"
            ) from error
        channels_first = np.ascontiguousarray(pixels.image.transpose(2, 0, 1))
        return Prepared(torch.as_tensor(channels_first), image.height, image.width)

    @torch.no_grad()
    def infer(self, batch: Sequence[Prepared]) -> list[RawDetections]:
        """See :class:`~retina_plugin.runtime.backend.Backend`."""
        if self._tiled is not None:
            return [_as_arrays(self._tiled.detect(image.pixels).to("cpu")) for image in batch]
        outputs = self._model([{"image": x.pixels, "height": x.height, "width": x.width} for x in batch])
        return [_as_arrays(output["instances"].to("cpu")) for output in outputs]


def _as_arrays(instances: Any) -> RawDetections:
    boxes, scores, classes = instances.pred_boxes.tensor, instances.scores, instances.pred_classes
    return RawDetections(boxes.float().numpy(), scores.float().numpy(), classes.long().numpy())
