"""Checks the number of boxes of each image."""

from collections import Counter

from retina_plugin.data.checks.context import Context, check
from retina_plugin.data.checks.findings import error_kind, warning_kind

NOTHING = error_kind("""nothing-to-train: No image has a box that training can use: Detectron2 stops when it builds the
    loader. Add annotations, or correct what is reported about them above.""")
NO_BOXES = warning_kind("""image-without-boxes: Training drops the image. If it is meant as an example without objects,
    set DATALOADER.FILTER_EMPTY_ANNOTATIONS False.""")
CROWD_ONLY = warning_kind("""image-crowd-only: All its boxes are groups (iscrowd), which training leaves out: it drops
    the image. Draw boxes around single objects, or leave it as it is.""")
MANY_BOXES = warning_kind("""image-many-boxes: No detector can find more of them than TEST.DETECTIONS_PER_IMAGE; AP
    counts TEST.AP_DETECTIONS_PER_IMAGE. Cut the image into pieces, or raise TEST.DETECTIONS_PER_IMAGE and
    TEST.AP_DETECTIONS_PER_IMAGE.""")


@check
def check_boxes_per_image(context: Context) -> None:
    """Find images without boxes, with groups alone, and with more boxes than a detector may find."""
    (images, annotations, _), cfg, found = context.entries, context.cfg, context.found
    single = Counter(a["image_id"] for a in annotations if a.get("iscrowd", 0) == 0)
    crowds = Counter(a["image_id"] for a in annotations if a.get("iscrowd", 0) != 0)
    if images and not single:
        found.add(NOTHING, f"{len(images)} images, {sum(crowds.values())} boxes of groups and no other")
        return
    most = min(cfg.TEST.DETECTIONS_PER_IMAGE, cfg.TEST.AP_DETECTIONS_PER_IMAGE)
    for image in images:
        number, groups = single[image["id"]], crowds[image["id"]]
        if number > most:
            found.add(MANY_BOXES, f"{number} boxes", image)
        elif number == 0 and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            kind, detail = (CROWD_ONLY, f"{groups} groups") if groups else (NO_BOXES, "no box")
            found.add(kind, detail, image)
