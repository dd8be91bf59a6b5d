"""Images with one bright square each, drawn into $FOREIGN_PROJECT_DATA when the data set is loaded."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

SIDE = 64


def load_squares() -> list[dict[str, Any]]:
    """Return eight images; class 0 is a small square, class 1 a large one."""
    folder, records = Path(os.environ["FOREIGN_PROJECT_DATA"]), []
    for i in range(8):
        x, y, side = 4 + 3 * i, 20 - 2 * i, 12 if i % 2 == 0 else 28
        pixels = np.full((SIDE, SIDE, 3), 40, dtype=np.uint8)
        pixels[y : y + side, x : x + side] = 220
        file = folder / f"square_{i}.png"
        if not file.exists():
            Image.fromarray(pixels).save(file)
        box = {"bbox": [x, y, side, side], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i % 2}
        records.append({"file_name": str(file), "image_id": i, "height": SIDE, "width": SIDE, "annotations": [box]})
    return records


DatasetCatalog.register("foreign_squares", load_squares)
MetadataCatalog.get("foreign_squares").thing_classes = ["small", "large"]
