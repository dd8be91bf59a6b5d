"""Correcting what has one certain correction; everything else is left as it is."""

import math
from collections import Counter
from functools import cached_property

from . import annotations, box_format, boxes, categories, coco_file, ids, images, structure
from .ids import other_type
from .structure import is_id, is_number, is_side

_MIN_RATIO = 0.02  # by which the sides of an image that was only resized may differ in proportion


def repair(data, found, files=None):
    """Apply every repair that findings call for, once.

    Args:
        data (DataSet): its ``coco`` is changed.
        found (Findings): on this very data set.
        files (ImageFiles): that looked into the images, if any did.

    Returns:
        dict of (kind, what was done) to how often.
    """
    repairs = _Repairs(data, files)
    changes = Counter()
    for kind, findings in found.by_kind().items():
        for finding in findings if kind in _REPAIRS else ():
            done = _REPAIRS[kind](repairs, finding)
            if done:
                changes[kind, done] += 1
    changes.update(repairs.finish())
    return dict(changes)


class _Repairs:
    """Each method repairs one finding, and returns what it has done in words, or None."""

    def __init__(self, data, files):
        self.data = data
        self.files = files
        self._dropped = set()  # id() of entries
        self._drop_other_types = False  # what is no object, and may be the same null many times
        self._used = Counter(a["image_id"] for a in self._entries("annotations") if is_id(a.get("image_id")))
        self._next_id = {s: self._first_free_id(s) for s in ("images", "annotations")}
        self._first = {  # entry of each id
            section: {e["id"]: e for e in reversed(self._entries(section)) if is_id(e.get("id"))}
            for section in ("images", "categories")
        }
        self._boxes_of = {}
        for annotation in self._entries("annotations"):
            if is_id(annotation.get("image_id")):
                self._boxes_of.setdefault(annotation["image_id"], []).append(annotation.get("bbox"))

    def _entries(self, section):
        return [entry for entry in self.data.coco[section] if isinstance(entry, dict)]

    def _first_free_id(self, section):
        numbers = [e["id"] for e in self._entries(section) if is_number(e.get("id")) and math.isfinite(e["id"])]
        return int(max([0, *numbers])) + 1

    def finish(self):
        """Take out the entries that were dropped, and the annotations of images that were."""
        gone = {e["id"] for e in self._entries("images") if id(e) in self._dropped and is_id(e.get("id"))}
        kept = [e for e in self.data.coco["images"] if id(e) not in self._dropped]
        gone -= {e["id"] for e in kept if isinstance(e, dict) and is_id(e.get("id"))}
        changes = Counter()
        for section in ("images", "annotations", "categories"):
            left = []
            for entry in self.data.coco[section]:
                if id(entry) in self._dropped or (self._drop_other_types and not isinstance(entry, dict)):
                    continue
                image_id = entry.get("image_id") if isinstance(entry, dict) else None
                if section == "annotations" and is_id(image_id) and image_id in gone:
                    changes[ids.UNKNOWN_IMAGE, "annotation of a dropped image dropped"] += 1
                    continue
                left.append(entry)
            self.data.coco[section] = left
        return changes

    def _drop(self, entry, what):
        if id(entry) in self._dropped:
            return None
        self._dropped.add(id(entry))
        return f"{what} dropped"

    # The file

    def without_bom(self, finding):
        return "written without"

    # Entries and ids

    def drop_entry(self, finding):
        self._drop_other_types = True
        return "dropped"

    def complete(self, finding):
        if finding.category is not None:
            return None
        if finding.annotation is not None:
            if not is_id(finding.annotation.get("id")) and all(
                is_id(finding.annotation.get(name)) for name in ("image_id", "category_id")
            ):
                return self.new_annotation_id(finding)
            return self._drop(finding.annotation, "annotation")
        image = finding.image
        if not is_id(image.get("id")) or not isinstance(image.get("file_name"), str):
            return self._drop(image, "image")
        if all(is_side(image.get(side)) for side in ("width", "height")):
            return None  # the other side's finding did both
        file = self._file(image)
        if file is None:
            return None
        image["width"], image["height"] = file.turned_size
        return "size taken from the file"

    def one_id_type(self, finding):
        annotation = finding.annotation
        for name, known in (("image_id", self._first["images"]), ("category_id", self._first["categories"])):
            if annotation[name] not in known and other_type(annotation[name]) in known:
                annotation[name] = other_type(annotation[name])
        return "id converted"

    def new_annotation_id(self, finding):
        finding.annotation["id"] = self._next_id["annotations"]
        self._next_id["annotations"] += 1
        return "new id given"

    def image_id(self, finding):
        image = finding.image
        if image == self._first["images"][image["id"]]:
            return self._drop(image, "copy of an image")
        if self._used[image["id"]]:
            return None  # nobody knows which of them the boxes are on
        image["id"] = self._next_id["images"]
        self._next_id["images"] += 1
        return "new id given"

    def category_id(self, finding):
        category = finding.category
        is_copy = category == self._first["categories"][category["id"]]
        return self._drop(category, "copy of a category") if is_copy else None

    def drop_annotation(self, finding):
        return self._drop(finding.annotation, "annotation")

    # Images

    def _file(self, image):
        file = self.files.look([self.data.path(image)])[0] if self.files else None
        return None if file is None or file.problem else file

    @cached_property
    def _some_file_is_good(self):
        return any(self._file(image) for image in self._entries("images") if isinstance(image.get("file_name"), str))

    def drop_image(self, finding):
        if not self._some_file_is_good:
            return None  # rather the wrong folder than a data set without images
        return self._drop(finding.image, "image")

    def spelling(self, finding):
        finding.image["file_name"] = images.spelt_otherwise(finding.image, self.data)
        return "name corrected"

    def size(self, finding):
        image, file = finding.image, self._file(finding.image)
        if file is None or file.swaps_sides:
            return None
        (width, height), (true_width, true_height) = (image["width"], image["height"]), file.turned_size
        if abs(true_width * height / (width * true_height) - 1) < _MIN_RATIO:
            return None  # resized: the boxes are for the size that the JSON says
        for box in filter(_is_box, self._boxes_of.get(image["id"], ())):
            if box[0] + box[2] > true_width + 1 or box[1] + box[3] > true_height + 1:
                return None
        image["width"], image["height"] = true_width, true_height
        return "size taken from the file"

    # Boxes

    def from_xyxy(self, finding):
        converted = 0
        for annotation in self._entries("annotations"):
            box = annotation.get("bbox")
            if _is_box(box):
                x0, y0, x1, y1 = box
                self._set_box(annotation, [x0, y0, x1 - x0, y1 - y0])
                converted += 1
        return f"{converted} boxes converted"

    def clip(self, finding):
        x, y, width, height = finding.annotation["bbox"]
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + width, finding.image["width"]), min(y + height, finding.image["height"])
        self._set_box(finding.annotation, [float(left), float(top), float(right - left), float(bottom - top)])
        return "box cut at the border"

    def to_floats(self, finding):
        finding.annotation["bbox"] = [float(value) for value in finding.annotation["bbox"]]
        return "written as floats"

    def _set_box(self, annotation, box):
        area, (_, _, width, height) = annotation.get("area"), annotation["bbox"]
        annotation["bbox"] = box
        new = box[2] * box[3]
        if is_number(area) and (area > new or abs(area - width * height) <= 1e-6 * abs(area)):
            annotation["area"] = new

    # Other fields of annotations

    def no_crowd(self, finding):
        finding.annotation["iscrowd"] = 0
        return "iscrowd: 0 added"

    def crowd(self, finding):
        value = finding.annotation["iscrowd"]
        if not (isinstance(value, bool) or value in ("0", "1")):
            return None
        finding.annotation["iscrowd"] = int(value)
        return "written as 0 or 1"

    def ignore(self, finding):
        finding.annotation["ignore"] = 0
        finding.annotation["iscrowd"] = 1
        return "ignore turned into iscrowd"

    def area(self, finding):
        _, _, width, height = finding.annotation["bbox"]
        finding.annotation["area"] = width * height
        return "width times height written"

    def segmentation(self, finding):
        mask = finding.annotation["segmentation"]
        if isinstance(mask, list) and len(mask) >= 6 and len(mask) % 2 == 0 and all(map(is_number, mask)):
            finding.annotation["segmentation"] = [mask]
            return "polygon wrapped into a list"
        del finding.annotation["segmentation"]
        return "segmentation removed"


def _is_box(box):
    return isinstance(box, list) and len(box) == 4 and all(is_number(value) and math.isfinite(value) for value in box)


_REPAIRS = {
    coco_file.BOM: _Repairs.without_bom,
    structure.NOT_AN_ENTRY: _Repairs.drop_entry,
    structure.NO_FIELD: _Repairs.complete,
    structure.BAD_FIELD: _Repairs.complete,
    structure.BAD_BOX: _Repairs.drop_annotation,
    ids.ID_TYPE: _Repairs.one_id_type,
    ids.IMAGE_ID: _Repairs.image_id,
    ids.ANNOTATION_ID: _Repairs.new_annotation_id,
    ids.ANNOTATION_ID_0: _Repairs.new_annotation_id,
    ids.UNKNOWN_IMAGE: _Repairs.drop_annotation,
    ids.UNKNOWN_CATEGORY: _Repairs.drop_annotation,
    categories.CATEGORY_ID: _Repairs.category_id,
    images.OTHER_NAME: _Repairs.spelling,
    images.SIZE: _Repairs.size,
    **dict.fromkeys(images.NO_READ, _Repairs.drop_image),
    box_format.AS_XYXY: _Repairs.from_xyxy,
    **dict.fromkeys((boxes.NOT_FINITE, boxes.ZERO, boxes.NEGATIVE, boxes.OUTSIDE), _Repairs.drop_annotation),
    boxes.PARTLY_OUTSIDE: _Repairs.clip,
    boxes.DUPLICATE: _Repairs.drop_annotation,
    boxes.INTEGER: _Repairs.to_floats,
    annotations.NO_CROWD: _Repairs.no_crowd,
    annotations.BAD_CROWD: _Repairs.crowd,
    annotations.IGNORE: _Repairs.ignore,
    **dict.fromkeys((annotations.NO_AREA, annotations.BAD_AREA, annotations.OTHER_AREA), _Repairs.area),
    **dict.fromkeys((annotations.BAD_MASK, annotations.NO_MASK), _Repairs.segmentation),
}
