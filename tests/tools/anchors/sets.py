"""Data sets in COCO's format whose boxes a test chooses, on blank images."""

import json

import numpy as np
from PIL import Image

from ...engine.small import make_cfg


def write_set(folder, boxes_of_images, size=(128, 128), num_classes=3):
    """Write ``set.json`` and an image for each list of XYWH boxes; classes take turns. Returns both paths."""
    (folder / "images").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, boxes in enumerate(boxes_of_images, 1):
        name = f"{number}.png"
        Image.new("RGB", size, (90, 90, 90)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for box in boxes:
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + len(annotations) % num_classes}
            entry |= {"bbox": [float(v) for v in box], "area": float(box[2] * box[3]), "iscrowd": 0}
            annotations.append(entry)
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(num_classes)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "set.json").write_text(json.dumps(coco))
    return folder / "set.json", folder / "images"


def write_config(folder, *opts):
    """Write the configuration of a small detector that takes images as they are."""
    path = folder / "config.yaml"
    cfg = make_cfg("INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.RANDOM_FLIP", "none", *opts)
    path.write_text(cfg.dump())
    return path


def random_boxes(rng, number, sides, ratio=1.0, size=128):
    """XYWH boxes of an area side^2 and a ratio height / width, anywhere inside."""
    sides = np.asarray(sides, dtype=float) * np.ones(number)
    wh = np.stack([sides / ratio**0.5, sides * ratio**0.5], axis=1).clip(max=size)
    return np.concatenate([rng.uniform(0, 1, (number, 2)) * (size - wh), wh], axis=1).round(2)
