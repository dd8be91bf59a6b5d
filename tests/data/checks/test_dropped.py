"""What is said to be dropped is what Detectron2's loader and mapper leave out."""

import re
from collections import Counter

import pytest
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.datasets import load_coco_json

FLAWS = {
    "iscrowd is not 0": [{"iscrowd": 1}, {"iscrowd": "0"}, {"iscrowd": 1, "segmentation": [[]]}],
    "no polygon of three points": [
        {"segmentation": mask} for mask in ([[]], [[], []], [[1.0, 2.0, 3.0, 4.0]], [[1.0] * 7], "x", [{}, "abc"])
    ],
    "no area in the image": [
        {"bbox": box}
        for box in (
            [10.0, 10.0, 0.0, 20.0],
            [10.0, 10.0, 20.0, 0.0],
            [500.0, 10.0, 20.0, 20.0],
            [10.0, -50.0, 20.0, 50.0],
            [float("nan"), 10.0, 20.0, 20.0],
            [10.0, 10.0, 20.0, float("nan")],
            [-5.0, 10.0, -30.0, 20.0],
        )
    ],
}
USED = [
    {"segmentation": []},
    {"segmentation": None},
    {"segmentation": [[1.0] * 6, []]},
    {"segmentation": {"size": [9, 9], "counts": "abc"}},
    {"bbox": [40.0, 40.0, -20.0, -20.0]},
    {"bbox": [10.0, 10.0, float("inf"), 20.0]},
    {"bbox": [-9.0, -9.0, 20.0, 20.0]},
    {"ignore": 0},
]


def test_every_class_is_told_how_many_of_its_boxes_detectron2_drops_and_why(random_set, cfg, tmp_path):
    rng, changes = random_set.rng, [change for kind in [*FLAWS.values(), USED] for change in kind]
    annotations = random_set.coco["annotations"]
    for annotation, i in zip(annotations, rng.permutation(len(annotations))):
        if i < len(changes):
            annotation.update(changes[i])
    random_set.write()
    mapper, kept = DatasetMapper(cfg, is_train=True), Counter()
    name = f"dropped_{tmp_path.name}"
    for record in load_coco_json(str(random_set.json_file), str(random_set.image_root), name):
        kept.update(mapper(record)["instances"].gt_classes.tolist())
    MetadataCatalog.remove(name)
    told = {}
    expected = Counter({reason: len(changes) for reason, changes in FLAWS.items()})
    for finding in random_set.check(cfg).found:
        if finding.kind.name == "boxes-dropped":
            gone, total, reasons = re.fullmatch(r".*: (\d+) of (\d+) boxes: (.*)", finding.detail).groups()
            told[finding.category["id"]] = int(total) - int(gone)
            for reason, number in re.findall(r"([^,(]+) \((\d+)\)", reasons):
                expected[reason.strip()] -= int(number)
    of_class = Counter(annotation["category_id"] for annotation in annotations)
    assert {label + 1: number for label, number in kept.items()} == {**of_class, **told}
    assert not any(expected.values())


@pytest.mark.parametrize("flaw", [flaw for flaws in FLAWS.values() for flaw in flaws])
def test_nothing_left_is_an_error_with_the_reasons(flaw, random_set, cfg):
    for annotation in random_set.coco["annotations"]:
        annotation.update(flaw)
    random_set.write()
    (finding,) = [f for f in random_set.check(cfg).found if f.kind.name == "nothing-to-train"]
    total = len(random_set.coco["annotations"])
    reason = next(reason for reason, flaws in FLAWS.items() if flaw in flaws)
    assert finding.detail.endswith(f"none of {total} annotations is used: {reason} ({total})")
    if reason != "no area in the image":  # there, Detectron2 trains, without a box
        records = load_coco_json(str(random_set.json_file), str(random_set.image_root))
        assert filter_images_with_only_crowd_annotations(records) == []
