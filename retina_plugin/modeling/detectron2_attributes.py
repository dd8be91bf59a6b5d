"""The attributes of Detectron2's ``RetinaNet``, which scripts and projects set after they have built a model.

``FocalRetinaNet`` keeps these settings in its parts. Each has Detectron2's name here, and is read from and written to
its part.
"""

import math
from typing import Any

from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from torch import nn

from retina_plugin.modeling.assigners.max_iou import AnchorMatcher


class PartSetting:
    """Reads and writes a setting of a part as an attribute of the model.

    Raises:
        AttributeError: the model's part has no such setting, such as a focal loss's gamma where the loss is another.
    """

    def __init__(self, part: str, name: str):
        """
        Args:
            part: the attribute of the model that holds the part.
            name: the setting's name in the part.
        """
        self._part, self._name = part, name

    def __set_name__(self, owner: type, name: str) -> None:
        self._own_name = name

    def __get__(self, model: nn.Module | None, owner: type | None = None) -> Any:
        return self if model is None else self._read(getattr(self._part_of(model), self._name))

    def __set__(self, model: nn.Module, value: Any) -> None:
        part = self._part_of(model)
        setattr(part, self._name, self._to_write(value))

    def missing(self, model: nn.Module) -> str:
        """Say that the model's part has no such setting."""
        part = type(getattr(model, self._part)).__name__
        return (
            f"{type(model).__name__} has no {self._own_name}: that is a setting of Detectron2's RetinaNet which its "
            f"{self._part}, {part}, does not have"
        )

    def _part_of(self, model: nn.Module) -> Any:
        part = getattr(model, self._part)
        if not hasattr(part, self._name):
            raise AttributeError(self.missing(model))
        return part

    def _read(self, value: Any) -> Any:
        return value

    def _to_write(self, value: Any) -> Any:
        return value


class _Alpha(PartSetting):
    """Alpha as Detectron2 has it: -1 is off."""

    def _read(self, value):
        return -1.0 if value is None else value

    def _to_write(self, value):
        return None if isinstance(value, (int, float)) and value == -1 else value


class _BoxTransform(PartSetting):
    def _to_write(self, value):
        if type(value) is not Box2BoxTransform:  # another one has deltas of another kind
            raise TypeError(
                f"box2box_transform must be a Box2BoxTransform, got {type(value).__name__}; MODEL.RETINANET.BOX_CODER "
                "names another box coder"
            )
        return value


class _AnchorMatcher(PartSetting):
    def __get__(self, model, owner=None):
        return self if model is None else _AssignerAsMatcher(self._part_of(model))

    def __set__(self, model, value):
        assigner = self._part_of(model)
        if not isinstance(value, Matcher):
            raise TypeError(f"anchor_matcher must be a Matcher, got {type(value).__name__}; model.assigner is replaced")
        settings = {
            "thresholds": value.thresholds[1:-1],
            "labels": value.labels,
            "allow_low_quality_matches": value.allow_low_quality_matches,
        }
        AnchorMatcher(num_classes=model.num_classes, **settings)  # which checks them
        for name, setting in settings.items():
            setattr(assigner, name, setting)


class _AssignerAsMatcher(Matcher):
    """The settings of an assigner as those of a ``Matcher``, between whose thresholds are -inf and inf."""

    def __init__(self, assigner: Any):
        self._assigner = assigner

    @property
    def thresholds(self) -> list[float]:
        return [-math.inf, *self._assigner.thresholds, math.inf]

    @thresholds.setter
    def thresholds(self, thresholds: list[float]) -> None:
        self._assigner.thresholds = thresholds[1:-1]

    @property
    def labels(self) -> list[int]:
        return self._assigner.labels

    @labels.setter
    def labels(self, labels: list[int]) -> None:
        self._assigner.labels = labels

    @property
    def allow_low_quality_matches(self) -> bool:
        return self._assigner.allow_low_quality_matches

    @allow_low_quality_matches.setter
    def allow_low_quality_matches(self, allow: bool) -> None:
        self._assigner.allow_low_quality_matches = allow


class Detectron2Attributes(nn.Module):
    """Adds the attributes of Detectron2's ``RetinaNet`` to a model with the parts of ``FocalRetinaNet``."""

    test_score_thresh = PartSetting("postprocessor", "score_thresh")
    test_topk_candidates = PartSetting("postprocessor", "topk_candidates")
    test_nms_thresh = PartSetting("postprocessor", "nms_thresh")
    max_detections_per_image = PartSetting("postprocessor", "max_detections_per_image")
    focal_loss_alpha = _Alpha("classification_loss", "alpha")
    focal_loss_gamma = PartSetting("classification_loss", "gamma")
    smooth_l1_beta = PartSetting("box_loss", "smooth_l1_beta")
    box_reg_loss_type = PartSetting("box_loss", "loss_type")
    box2box_transform = _BoxTransform("box_coder", "transform")
    anchor_matcher = _AnchorMatcher("assigner", "allow_low_quality_matches")

    @property
    def num_classes(self) -> int:
        """K, also of the assigner, whose background label it is; the head's ``cls_score`` has to fit."""
        return self._num_classes

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        self._num_classes = value
        if hasattr(getattr(self, "assigner", None), "num_classes"):
            self.assigner.num_classes = value

    def __getattr__(self, name: str) -> Any:
        # nn.Module turns an AttributeError of a descriptor into one that says nothing.
        setting = getattr(type(self), name, None)
        if isinstance(setting, PartSetting):
            raise AttributeError(setting.missing(self))
        return super().__getattr__(name)
