"""Checks of the keys of tiles."""

from collections.abc import Iterator

from detectron2.config import CfgNode

from retina_plugin.config.checks.model import builds_focal_retinanet
from retina_plugin.config.checks.rules import is_integer


def tile_problems(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    """Yield a line for each problem with tiles: overlap against size, and models that tiles are not for."""
    for key, tile in (("TEST", cfg.TEST.TILE), *(() if eval_only else (("INPUT", cfg.INPUT.TILE),))):
        # The table of values says what is no integer.
        if is_integer(tile.SIZE, 1) and is_integer(tile.OVERLAP, tile.SIZE):
            yield (
                f"{key}.TILE.OVERLAP is {tile.OVERLAP}, but tiles of {key}.TILE.SIZE {tile.SIZE} can share less than "
                "their side alone: set it to the size of the largest object, and SIZE to several times of that"
            )
    architecture = cfg.MODEL.META_ARCHITECTURE
    if cfg.TEST.TILE.SIZE and not (architecture == "RetinaNet" or builds_focal_retinanet(cfg)):
        yield (
            f"TEST.TILE.SIZE is {cfg.TEST.TILE.SIZE}, but tiles are merged for the boxes of a RetinaNet, not for what "
            f"{architecture} finds. Set it to 0"
        )
    whole = [key for key in ("MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS") if cfg.MODEL[key]]
    if whole and not eval_only and cfg.INPUT.TILE.SIZE:
        yield (
            f"INPUT.TILE.SIZE is {cfg.INPUT.TILE.SIZE}, but MODEL.{whole[0]} is True, and tiles have boxes alone: turn "
            "one of them off"
        )
