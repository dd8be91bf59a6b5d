"""A random data set in COCO's format, with image files, in which there is nothing to find."""

import copy
import json

import numpy as np
from PIL import Image

from retina_plugin.data import checks


class RandomSet:
    """Thirteen to sixteen images with four boxes each, of three classes.

    Attributes:
        coco: the COCO file as Python; :meth:`write` writes it.
        rng: for what a test adds.
    """

    def __init__(self, folder, seed):
        self.rng = np.random.default_rng(seed)
        self.folder, self.image_root, self.json_file = folder, folder / "images", folder / "set.json"
        self.image_root.mkdir()
        images, annotations = [], []
        for i in range(1, int(self.rng.integers(14, 18))):
            width, height = (int(side) for side in self.rng.integers(101, 160, 2))
            width += width == height  # sides of its own
            image = {"id": i, "file_name": f"street_{i:03d}.jpg", "width": width, "height": height}
            self.draw(image)
            images.append(image)
            for _ in range(4):
                annotations.append(self.annotation(image, len(annotations) + 1, 1 + len(annotations) % 3))
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(("car", "bicycle", "tram"))]
        info = {"description": "random", "version": "1.0"}
        self.coco = {"info": info, "images": images, "annotations": annotations, "categories": categories}

    def draw(self, image, name=None, mode="RGB", size=None, **options):
        """Write the file of an image: blurred noise."""
        width, height = size or (image["width"], image["height"])
        small = self.rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        path = self.image_root / (name or image["file_name"])
        Image.fromarray(small).resize((width, height)).convert(mode).save(path, **options)
        return path

    def annotation(self, image, identifier, category_id):
        """An annotation with a box of ordinary size and aspect ratio within the image."""
        side = self.rng.uniform(0.4, 0.6) * min(image["width"], image["height"])
        width, height = side * self.rng.uniform(0.8, 1.2, 2)
        x, y = self.rng.uniform(0, 1, 2) * (image["width"] - width, image["height"] - height)
        box = [round(float(value), 2) for value in (x, y, width, height)]
        area = round(0.7 * box[2] * box[3], 2)
        entry = {"id": identifier, "image_id": image["id"], "category_id": category_id, "bbox": box}
        return {**entry, "area": area, "iscrowd": 0}

    def some(self, section="annotations"):
        """One entry at random; not the first, so that ids do not agree by chance."""
        return self.coco[section][int(self.rng.integers(1, len(self.coco[section])))]

    def image_of(self, annotation):
        return next(image for image in self.coco["images"] if image["id"] == annotation["image_id"])

    def path(self, image):
        return self.image_root / image["file_name"]

    def write(self, text=None):
        """Write the COCO file, or a text in its place."""
        if isinstance(text, bytes):
            self.json_file.write_bytes(text)
        else:
            self.json_file.write_text(json.dumps(self.coco) if text is None else text)

    def check(self, cfg, num_classes=None, **options):
        """Check what :meth:`write` wrote; returns the ``Context`` with the findings."""
        found, files = checks.Findings(), checks.ImageFiles(**options)
        data = checks.from_json(str(self.json_file), str(self.image_root), found)
        context = checks.Context(data, cfg, found, files, num_classes)
        checks.check_data_set(context)
        return context

    def copy_of_coco(self):
        return copy.deepcopy(self.coco)


def places(found):
    """set of (kind, file name, image id, annotation id) of findings."""
    return {(finding.kind.name, *map(hashable, finding.place()[:3])) for finding in found}


def hashable(value):
    return value if isinstance(value, (str, int, float, type(None))) else repr(value)
