"""The project's key."""

from detectron2.config import CfgNode


def add_config(cfg: CfgNode) -> None:
    """Add the key in place."""
    # Lowest IoU of a positive anchor.
    cfg.MODEL.RETINANET.FOREIGN_IOU = 0.4
