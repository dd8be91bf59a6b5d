"""Writes detections as labels of images, to train or correct from: Pascal VOC and YOLO."""

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from retina_plugin.core.files import atomic_write
from retina_plugin.core.text import printable
from retina_plugin.runtime.detections import Detections

SUFFIXES = {"voc": ".xml", "yolo": ".txt"}  # COCO's is one file for all images


def write_labels(path: Path, label_format: str, detections: Detections) -> None:
    """Write the labels of an image.

    Args:
        path: the file; its folder is made.
        label_format: a key of :data:`SUFFIXES`.
        detections: of the image.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _WRITERS[label_format](detections).encode(errors="backslashreplace")
    atomic_write(path, lambda file: file.write(text), survives_power_cut=False)


def _as_voc(detections: Detections) -> str:
    """Pixels are counted from 1, and the last ones belong to the box."""
    root = ElementTree.Element("annotation")
    file = Path(detections.name)
    _add(root, folder=file.parent.name, filename=file.name, path=detections.name, segmented=0)
    _add(ElementTree.SubElement(root, "size"), width=detections.width, height=detections.height, depth=3)
    for box, name, score in zip(detections.boxes.tolist(), detections.labels, detections.scores.tolist()):
        item = ElementTree.SubElement(root, "object")
        _add(item, name=name, pose="Unspecified", truncated=0, difficult=0, score=f"{score:.6f}")
        xmin, ymin, xmax, ymax = (round(x) for x in box)
        corners = {"xmin": xmin + 1, "ymin": ymin + 1, "xmax": max(xmax, xmin + 1), "ymax": max(ymax, ymin + 1)}
        _add(ElementTree.SubElement(item, "bndbox"), **corners)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, **values: object) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = printable(str(value))  # control characters are not XML


def _as_yolo(detections: Detections) -> str:
    """A line for each object: label, center, width and height, in sides of the image."""
    width, height = detections.width, detections.height
    lines = []
    for (x0, y0, x1, y1), label in zip(detections.boxes.tolist(), detections.class_ids.tolist()):
        center = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height)
        numbers = (*center, (x1 - x0) / width, (y1 - y0) / height)
        lines.append(" ".join([str(label), *(f"{number:.6f}" for number in numbers)]) + "\n")
    return "".join(lines)


_WRITERS: dict[str, Callable[[Detections], str]] = {"voc": _as_voc, "yolo": _as_yolo}
