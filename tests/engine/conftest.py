"""COCO in miniature: the real folders, file names, category ids and formats, with images made here."""

import json

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image


def write_coco(root, split, num_images, categories):
    rng = np.random.default_rng()
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir()
    images, annotations = [], []
    for i in range(1, num_images + 1):
        width, height = (int(n) for n in rng.integers(60, 100, 2))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / f"{i:012d}.jpg")
        images.append({"id": i, "file_name": f"{i:012d}.jpg", "width": width, "height": height})
        for _ in range(2):
            x, y, w, h = (int(n) for n in rng.integers(5, 30, 4))
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": i,
                "category_id": categories[rng.integers(len(categories))]["id"],
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            })  # fmt: skip
    coco = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(coco))
    return path, root / split


@pytest.fixture(scope="session")
def tiny_coco(tmp_path_factory):
    """A folder for $DETECTRON2_DATASETS with coco_2017_train and coco_2017_val of a few images."""
    root = tmp_path_factory.mktemp("datasets")
    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    write_coco(root / "coco", "train2017", 8, categories)
    write_coco(root / "coco", "val2017", 4, categories)
    return root
