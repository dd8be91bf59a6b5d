"""How many boxes images have."""

from collections import Counter

from .findings import ERROR, WARNING, declare

NOTHING = declare(
    "nothing-to-train",
    ERROR,
    "No image has a box that training can use: Detectron2 stops when it builds the loader.",
    "Add annotations, or correct what is said about them above.",
)
NO_BOXES = declare(
    "image-without-boxes",
    WARNING,
    "Training drops the image.",
    "If it is meant as an example without objects, set DATALOADER.FILTER_EMPTY_ANNOTATIONS False.",
)
CROWD_ONLY = declare(
    "image-crowd-only",
    WARNING,
    "All its boxes are groups (iscrowd), which training leaves out: it drops the image.",
    "Draw boxes around single objects, or leave it as it is.",
)
MANY_BOXES = declare(
    "image-many-boxes",
    WARNING,
    "No detector can find more of them than TEST.DETECTIONS_PER_IMAGE; AP counts TEST.AP_DETECTIONS_PER_IMAGE.",
    "Cut the image into pieces, or raise TEST.DETECTIONS_PER_IMAGE and TEST.AP_DETECTIONS_PER_IMAGE.",
)


def check_numbers_of_boxes(entries, cfg, found):
    """Count the boxes of every image.

    Args:
        entries (Entries): of :func:`check_ids`.
        cfg: the configuration.
        found (Findings): gets what is wrong.
    """
    single = Counter(a["image_id"] for a in entries.annotations if a.get("iscrowd", 0) == 0)
    crowds = Counter(a["image_id"] for a in entries.annotations if a.get("iscrowd", 0) != 0)
    if entries.images and not single:
        found.add(NOTHING, f"{len(entries.images)} images, {sum(crowds.values())} boxes of groups and no other")
        return
    most = min(cfg.TEST.DETECTIONS_PER_IMAGE, cfg.TEST.AP_DETECTIONS_PER_IMAGE)
    for image in entries.images:
        number = single[image["id"]]
        if number > most:
            found.add(MANY_BOXES, f"{number} boxes", image)
        if number == 0 and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            groups = crowds[image["id"]]
            if groups:
                found.add(CROWD_ONLY, f"{groups} groups", image)
            else:
                found.add(NO_BOXES, "no box", image)
