"""The key of the project."""

from detectron2.config import CfgNode


def add_config(cfg: CfgNode) -> None:
    """Add the project's key to a configuration, in place."""
    # Weight of the loss of classes that are in the image, over that of the others.
    cfg.MODEL.PYRAMID_CLASSIFIER = CfgNode({"POSITIVE_WEIGHT": 1.0})
