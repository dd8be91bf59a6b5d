"""Decoding of boxes as other projects do it, restated in numpy for one image, in float64."""

import numpy as np


def iou(box, others, last_pixel):
    """``last_pixel``: 1 where boxes end with their last pixel, 0 where they end behind it."""
    corner, end = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    overlap = np.clip(end - corner + last_pixel, 0, None).prod(axis=1)
    area = (box[2:] - box[:2] + last_pixel).prod() + (others[:, 2:] - others[:, :2] + last_pixel).prod(axis=1)
    return overlap / (area - overlap)


def class_wise_nms(boxes, scores, classes, threshold, last_pixel=0):
    """Indices of what is kept, with the best first."""
    kept = []
    for c in np.unique(classes):
        left = np.flatnonzero(classes == c)
        left = left[np.argsort(-scores[left], kind="stable")]
        while len(left):
            kept.append(left[0])
            left = left[1:][iou(boxes[left[0]], boxes[left[1:]], last_pixel) <= threshold]
    return np.array(sorted(kept, key=lambda i: -scores[i]))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
