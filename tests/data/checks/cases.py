"""Data sets with one flaw each.

A case is a function of a :class:`RandomSet` that puts the flaw in, and returns where it must be found: a list of
(kind, image or None, annotation or None). ``stops`` says where Detectron2 stops at it: "load", "map" (the first batch
that has it) or "evaluate". ``left`` are the kinds that no repair takes away.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image


class Case(NamedTuple):
    flaw: callable
    stops: str = None
    left: tuple = ()
    num_classes: int = None


CASES = {}


def case(**options):
    def add(flaw):
        CASES[flaw.__name__] = Case(flaw, **options)
        return flaw

    return add


# Entries


@case(stops="load", left=("section-empty",))
def no_category(s):
    s.coco["categories"] = []
    return [("section-empty", None, None)]


@case(stops="load")
def annotation_is_null(s):
    s.coco["annotations"].insert(3, None)
    return [("entry-invalid", None, None)]


@case(stops="load")
def image_without_height(s):
    image = s.some("images")
    del image["height"]
    return [("field-missing", image, None)]


@case(stops="map")
def annotation_without_bbox(s):
    annotation = s.some()
    del annotation["bbox"]
    return [("field-missing", s.image_of(annotation), annotation)]


@case(stops="load")
def annotation_without_id(s):
    annotation = s.some()
    del annotation["id"]
    return [("field-missing", s.image_of(annotation), annotation)]


@case(stops="load")
def annotation_without_category(s):
    annotation = s.some()
    del annotation["category_id"]
    return [("field-missing", s.image_of(annotation), annotation)]


@case(stops="load", left=("field-missing",))
def category_without_name(s):
    del s.coco["categories"][1]["name"]
    return [("field-missing", None, None)]


@case(stops="map")
def width_is_a_string(s):
    image = s.some("images")
    image["width"] = str(image["width"])
    return [("field-invalid", image, None)]


@case(stops="load")
def file_name_is_null(s):
    image = s.some("images")
    image["file_name"] = None
    s.coco["annotations"] = [a for a in s.coco["annotations"] if a["image_id"] != image["id"]]
    return [("field-invalid", image, None)]


@case(stops="load")
def image_id_is_a_list(s):
    annotation = s.some()
    annotation["image_id"] = [annotation["image_id"]]
    return [("field-invalid", None, annotation)]


def _malformed(name, make, stops):
    def flaw(s):
        annotation = s.some()
        annotation["bbox"] = make(annotation["bbox"])
        return [("box-malformed", s.image_of(annotation), annotation)]

    flaw.__name__ = name
    case(stops=stops)(flaw)


_malformed("box_is_empty", lambda box: [], "load")
_malformed("box_of_three", lambda box: box[:3], "map")
_malformed("box_of_five", lambda box: [*box, 0.5], "map")
_malformed("box_with_a_string", lambda box: [*box[:3], str(box[3])], "map")
_malformed("box_with_null", lambda box: [None, *box[1:]], "map")
_malformed("box_is_an_object", lambda box: dict(zip("xywh", box)), "map")


# Ids


@case(left=("image-id-duplicate",))
def image_id_twice(s):
    image, other = s.coco["images"][2], s.coco["images"][5]
    s.coco["annotations"] = [a for a in s.coco["annotations"] if a["image_id"] not in (other["id"], image["id"])]
    s.coco["annotations"].append(s.annotation({**image, "width": 100, "height": 100}, 900, 1))
    other["id"] = image["id"]
    return [("image-id-duplicate", other, None)]


@case()
def image_entry_twice(s):
    image = s.some("images")
    s.coco["images"].append(dict(image))
    return [("image-id-duplicate", image, None), ("image-file-duplicate", image, None)]


@case(left=("image-file-duplicate",))
def file_under_two_ids(s):
    image = {**s.some("images"), "id": 900}
    s.coco["images"].append(image)
    s.coco["annotations"].append(s.annotation(image, 900, 1))
    return [("image-file-duplicate", image, None)]


@case(stops="load")
def annotation_id_twice(s):
    annotation = s.some()
    annotation["id"] = s.coco["annotations"][0]["id"]
    return [("annotation-id-duplicate", s.image_of(annotation), annotation)]


@case()
def annotation_id_zero(s):
    annotation = s.some()
    annotation["id"] = 0
    return [("annotation-id-zero", s.image_of(annotation), annotation)]


@case()
def image_id_as_string(s):
    annotation = s.some()
    annotation["image_id"] = str(annotation["image_id"])
    return [("id-type", None, annotation)]


@case(stops="load")
def category_id_as_string(s):
    annotation = s.some()
    annotation["category_id"] = str(annotation["category_id"])
    return [("id-type", s.image_of(annotation), annotation)]


@case()
def annotation_of_an_unknown_image(s):
    annotation = s.some()
    annotation["image_id"] = 900
    return [("image-unknown", None, annotation)]


@case(stops="load")
def annotation_of_an_unknown_category(s):
    annotation = s.some()
    annotation["category_id"] = 4
    return [("category-unknown", s.image_of(annotation), annotation)]


# Categories


@case(left=("category-id-duplicate",))
def category_id_twice(s):
    s.coco["categories"].append({"id": 2, "name": "bus"})
    return [("category-id-duplicate", None, None)]


@case(left=("category-name-duplicate",))
def category_name_twice(s):
    s.coco["categories"][2]["name"] = "car"
    return [("category-name-duplicate", None, None)]


@case(left=("category-name-empty",))
def category_without_letters(s):
    s.coco["categories"][2]["name"] = " "
    return [("category-name-empty", None, None)]


@case(left=("category-empty",))
def category_without_boxes(s):
    s.coco["categories"].append({"id": 4, "name": "bus"})
    return [("category-empty", None, None)]


@case(left=("category-rare",))
def category_with_three_boxes(s):
    s.coco["categories"].append({"id": 4, "name": "bus"})
    for annotation in s.coco["annotations"][::9][:3]:
        annotation["category_id"] = 4
    return [("category-rare", None, None)]


@case(left=("category-background", "category-ids-mapped"))
def background_as_a_class(s):
    s.coco["categories"].append({"id": 0, "name": "__background__"})
    return [("category-background", None, None), ("category-ids-mapped", None, None)]


@case(left=("category-ids-mapped",))
def ids_with_gaps(s):
    s.coco["categories"][2]["id"] = 90
    for annotation in s.coco["annotations"]:
        annotation["category_id"] = {3: 90}.get(annotation["category_id"], annotation["category_id"])
    return [("category-ids-mapped", None, None)]


@case(left=("category-count",), num_classes=80)
def eighty_classes_in_the_configuration(s):
    return [("category-count", None, None)]


# Images


@case(stops="map")
def file_missing(s):
    image = s.some("images")
    s.path(image).unlink()
    return [("image-missing", image, None)]


@case(stops="map")
def file_of_another_format(s):
    image = s.some("images")
    s.path(image).rename(s.path(image).with_suffix(".png"))
    return [("image-missing", image, None)]


@case(stops="map")
def name_in_capitals(s):
    image = s.some("images")
    image["file_name"] = image["file_name"].upper()
    return [("image-name-differs", image, None)]


@case(stops="map")
def name_with_a_backslash(s):
    image = s.some("images")
    (s.image_root / "left").mkdir()
    s.path(image).rename(s.image_root / "left" / image["file_name"])
    image["file_name"] = f"left\\{image['file_name']}"
    return [("image-name-differs", image, None)]


@case(stops="map")
def file_empty(s):
    image = s.some("images")
    s.path(image).write_bytes(b"")
    return [("image-empty", image, None)]


@case(stops="map")
def jpeg_cut_short(s):
    image = s.some("images")
    data = s.path(image).read_bytes()
    s.path(image).write_bytes(data[: int(len(data) * s.rng.uniform(0.5, 0.9))])
    return [("image-truncated", image, None)]


def _as_png(s, image):
    image["file_name"] = image["file_name"].replace(".jpg", ".png")
    return s.draw(image)


@case(stops="map")
def png_cut_short(s):
    image = s.some("images")
    path = _as_png(s, image)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return [("image-truncated", image, None)]


@case()
def jpeg_with_zeros_at_its_end(s):
    image = s.some("images")
    pixels = s.rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(s.path(image), quality=95)
    data = s.path(image).read_bytes()
    s.path(image).write_bytes(data[: int(len(data) * 0.8)].ljust(len(data), b"\0"))
    return [("image-damaged", image, None)]


@case()
def png_with_a_changed_byte(s):
    image = s.some("images")
    path = _as_png(s, image)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"IDAT") - 5  # of the checksum before, or the data
    at = len(data) - 14 if at < 40 else at  # the last byte of the only IDAT's checksum, before IEND
    data[at - 2] ^= 0xFF
    path.write_bytes(data)
    return [("image-damaged", image, None)]


@case(stops="map")
def web_page(s):
    image = s.some("images")
    s.path(image).write_text("<!DOCTYPE html><html><body>404</body></html>")
    return [("image-not-image", image, None)]


@case(stops="map")
def noise_in_a_file(s):
    image = s.some("images")
    s.path(image).write_bytes(b"\x01" + s.rng.bytes(500))
    return [("image-not-image", image, None)]


@case(stops="map")
def zeros_in_a_file(s):
    image = s.some("images")
    s.path(image).write_bytes(bytes(500))
    return [("image-not-image", image, None)]


@case(stops="map")
def folder_with_the_name(s):
    image = s.some("images")
    s.path(image).unlink()
    s.path(image).mkdir()
    return [("image-unreadable", image, None)]


@case(stops="map")
def width_is_wrong(s):
    image = s.some("images")
    image["width"] += 13
    s.coco["annotations"] = [a for a in s.coco["annotations"] if a["image_id"] != image["id"]]
    s.coco["annotations"].append(s.annotation({**image, "width": 90, "height": 90}, 900, 1))
    return [("image-size", image, None)]


@case(stops="map", left=("image-size",))
def file_was_resized(s):
    image = s.some("images")
    s.draw(image, size=(2 * image["width"], 2 * image["height"]))
    return [("image-size", image, None)]


def _with_orientation(s, orientation, size=None):
    image = s.some("images")
    exif = Image.Exif()
    exif[274] = orientation
    s.draw(image, exif=exif, size=size and size(image))
    return image


@case(stops="map", left=("image-size-turned",))
def turned_by_exif_and_boxes_not(s):
    return [("image-size-turned", _with_orientation(s, int(s.rng.choice([5, 6, 7, 8]))), None)]


@case()
def turned_by_exif_and_boxes_too(s):
    _with_orientation(s, int(s.rng.choice([5, 6, 7, 8])), lambda image: (image["height"], image["width"]))
    return []


@case(left=("image-orientation",))
def upside_down_by_exif(s):
    return [("image-orientation", _with_orientation(s, int(s.rng.choice([2, 3, 4]))), None)]


@case(left=("image-16-bit",))
def sixteen_bits(s):
    image = s.some("images")
    image["file_name"] += ".png"
    pixels = s.rng.integers(0, 2**16, (image["height"], image["width"])).astype(np.uint16)
    Image.fromarray(pixels).save(s.path(image))
    return [("image-16-bit", image, None)]


@case(left=("image-transparent",))
def transparent_pixels(s):
    image = s.some("images")
    image["file_name"] += ".png"
    s.draw(image, mode="RGBA")
    with Image.open(s.path(image)) as pixels:
        pixels.putpixel((3, 3), (9, 9, 9, 100))
        pixels.save(s.path(image))
    return [("image-transparent", image, None)]


def _colors(name, mode, suffix):
    def flaw(s):
        image = s.some("images")
        image["file_name"] += suffix
        s.draw(image, mode=mode)
        return [("image-colors", image, None)]

    flaw.__name__ = name
    case(left=("image-colors",))(flaw)


_colors("gray", "L", ".jpg")
_colors("palette", "P", ".png")
_colors("opaque_rgba", "RGBA", ".png")
_colors("cmyk", "CMYK", ".jpg")


def _long(name, kind, width, stops):
    def flaw(s):
        image = s.some("images")
        s.coco["annotations"] = [a for a in s.coco["annotations"] if a["image_id"] != image["id"]]
        image.update(width=width, height=4)
        s.coco["annotations"].append({**s.annotation(image, 900, 1), "bbox": [0.5, 0.5, 3.4, 3.2], "area": 9.0})
        buffer = io.BytesIO()
        Image.new("RGB", (width, 4)).save(buffer, "PNG")
        s.path(image).write_bytes(buffer.getvalue())
        too_small = ("anchors-too-large", image, s.coco["annotations"][-1])
        return [(kind, image, None), *([too_small] if kind == "image-sliver" else [])]

    flaw.__name__ = name
    case(stops=stops, left=(kind, "anchors-too-large") if kind == "image-sliver" else (kind,))(flaw)


_long("a_line_of_pixels", "image-vanishes", 8000, "map")
_long("a_thin_strip", "image-sliver", 400, None)


@case()
def absolute_path(s):
    image = s.some("images")
    image["file_name"] = str(s.path(image))
    return [("image-path", image, None)]


@case()
def path_out_of_the_folder(s):
    image = s.some("images")
    image["file_name"] = f"../{s.image_root.name}/{image['file_name']}"
    return [("image-path", image, None)]


@case(stops="map", left=("image-folder-missing",))
def folder_missing(s):
    s.image_root = s.folder / "nowhere"
    return [("image-folder-missing", None, None)]


# Boxes


def _box(name, kind, change, *, more=(), left=(), stops=None):
    def flaw(s):
        annotation = s.some()
        image = s.image_of(annotation)
        annotation["bbox"] = change(annotation["bbox"], image)
        annotation["area"] = max(0.7 * annotation["bbox"][2] * annotation["bbox"][3], 1.0)
        return [(kind, image, annotation), *((other, None, None) for other in more)]

    flaw.__name__ = name
    case(left=left, stops=stops)(flaw)


_box("box_with_nan", "box-not-finite", lambda b, i: [float("nan"), *b[1:]], more=("json-nan", "boxes-dropped"))
_box("box_with_infinity", "box-not-finite", lambda b, i: [*b[:2], float("inf"), b[3]], more=("json-nan",))
_box("box_without_width", "box-zero", lambda b, i: [*b[:2], 0.0, b[3]], more=("boxes-dropped",))
_box("box_with_negative_height", "box-negative", lambda b, i: [b[0], b[1] + b[3], b[2], -b[3]])
_box("box_right_of_the_image", "box-outside", lambda b, i: [i["width"] + 5.5, *b[1:]], more=("boxes-dropped",))
_box("box_over_the_border", "box-partly-outside", lambda b, i: [i["width"] - b[2] + 7.5, *b[1:]])
_box("box_over_the_corner", "box-partly-outside", lambda b, i: [-6.5, -6.5, *b[2:]])
_box("box_within_a_pixel_of_the_border", "box-integer", lambda b, i: [-1, 20, 61, i["height"] - 19])
_box("box_of_one_row", "box-sliver", lambda b, i: [*b[:3], 1.0], left=("box-sliver",))
_box("box_of_integers", "box-integer", lambda b, i: [10, 20, 61, 63])


@case()
def box_again(s):
    annotation = s.some()
    again = {**annotation, "id": 900}
    s.coco["annotations"].append(again)
    return [("box-duplicate", s.image_of(annotation), again)]


@case(left=("box-two-classes",))
def box_again_of_another_class(s):
    annotation = s.some()
    again = {**annotation, "id": 900, "category_id": annotation["category_id"] % 3 + 1}
    s.coco["annotations"].append(again)
    return [("box-two-classes", s.image_of(annotation), again)]


@case()
def corners_in_place_of_sides(s):
    outside = []
    for annotation in s.coco["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, round(x + width, 2), round(y + height, 2)]
        image = s.image_of(annotation)
        if 2 * x + width > image["width"] + 1 or 2 * y + height > image["height"] + 1:
            outside.append(annotation)
    return [("boxes-xyxy", s.image_of(outside[0]), outside[0])]


@case(left=("boxes-fractions",))
def fractions_of_the_sides(s):
    for annotation in s.coco["annotations"]:
        image = s.image_of(annotation)
        sides = np.tile([image["width"], image["height"]], 2)
        annotation["bbox"] = [round(float(value), 5) for value in np.array(annotation["bbox"]) / sides]
    first = s.coco["annotations"][0]
    return [("boxes-fractions", s.image_of(first), first)]


# Other fields


def _field(name, kind, *, stops=None, left=(), more=(), **fields):
    def flaw(s):
        annotation = s.some()
        for field, value in fields.items():
            if value is None:
                del annotation[field]
            else:
                annotation[field] = value(annotation) if callable(value) else value
        return [(kind, s.image_of(annotation), annotation), *((other, None, None) for other in more)]

    flaw.__name__ = name
    case(stops=stops, left=left)(flaw)


_field("no_iscrowd", "iscrowd-missing", iscrowd=None, stops="evaluate")
_field("iscrowd_is_a_string", "iscrowd-invalid", iscrowd="0", more=("boxes-dropped",))
_field(
    "iscrowd_is_two", "iscrowd-invalid", iscrowd=2, left=("iscrowd-invalid", "boxes-dropped"), more=("boxes-dropped",)
)
_field("no_area", "area-missing", area=None, stops="evaluate")
_field("area_is_a_string", "area-invalid", area="large", stops="evaluate")
_field("area_is_zero", "area-invalid", area=0)
_field("area_is_nan", "area-invalid", area=float("nan"), more=("json-nan",))
_field("area_too_large_for_a_float", "area-invalid", area=10**400)
_field("box_too_large_for_a_float", "box-malformed", bbox=[1, 1, 10**400, 9])
_field("area_of_more_than_the_box", "area-inconsistent", area=lambda a: 1.5 * a["bbox"][2] * a["bbox"][3])
_field("area_as_a_fraction", "area-inconsistent", area=0.2)
_field("ignored", "annotation-ignore", ignore=1, stops="load", left=("boxes-dropped",))
_field("polygon_without_a_list", "segmentation-malformed", segmentation=[1.0, 1.0, 9.0, 1.0, 9.0, 9.0], stops="load")
_field("rle_without_size", "segmentation-malformed", segmentation={"counts": [1, 2, 3]}, stops="load")
_field("polygon_of_two_points", "segmentation-degenerate", segmentation=[[1.0, 1.0, 9.0, 9.0]], more=("boxes-dropped",))


# Numbers of boxes


@case(left=("image-without-boxes",))
def image_without_boxes(s):
    image = s.some("images")
    s.coco["annotations"] = [a for a in s.coco["annotations"] if a["image_id"] != image["id"]]
    return [("image-without-boxes", image, None)]


@case(left=("image-crowd-only", "boxes-dropped"))
def image_with_a_group_alone(s):
    image = s.some("images")
    for annotation in s.coco["annotations"]:
        annotation["iscrowd"] = int(annotation["image_id"] == image["id"])
    return [("image-crowd-only", image, None), ("boxes-dropped", None, None)]


@case(left=("image-many-boxes",))
def image_with_101_boxes(s):
    image = s.some("images")
    s.coco["annotations"] += [s.annotation(image, 900 + i, 1) for i in range(97)]
    return [("image-many-boxes", image, None)]


@case(stops="load", left=("nothing-to-train", "boxes-dropped"))
def groups_alone(s):
    for annotation in s.coco["annotations"]:
        annotation["iscrowd"] = 1
    return [("nothing-to-train", None, None), ("boxes-dropped", None, None)]


# Anchors


def _shape(name, kind, width, height):
    def flaw(s):
        annotation = s.some()
        image = s.image_of(annotation)
        image.update(width=150, height=140)
        s.draw(image)
        for other in s.coco["annotations"]:
            if other["image_id"] == image["id"]:
                other.update(s.annotation({**image, "width": 100, "height": 100}, other["id"], other["category_id"]))
        annotation.update(bbox=[30.25, 20.5, width, height], area=0.7 * width * height)
        return [(kind, image, annotation)]

    flaw.__name__ = name
    case(left=(kind,))(flaw)


_shape("box_too_small_for_the_anchors", "anchors-too-large", 8.0, 8.0)
_shape("box_too_long_for_the_anchors", "anchors-too-square", 12.0, 110.0)
