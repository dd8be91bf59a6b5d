"""What the explanations say of flaws at which Detectron2 does not stop is what happens."""

import contextlib
import io

import numpy as np
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import read_image
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def _load(random_set):
    random_set.write()
    return load_coco_json(str(random_set.json_file), str(random_set.image_root))


def test_an_object_with_id_0_counts_as_missed_however_well_it_is_found(random_set):
    def average_recall():
        random_set.write()
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(random_set.json_file))
            keys = ("image_id", "category_id", "bbox")
            found = truth.loadRes([{**{k: a[k] for k in keys}, "score": 0.9} for a in random_set.coco["annotations"]])
            evaluation = COCOeval(truth, found, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation.stats[8]

    assert average_recall() == 1
    annotation = random_set.some()
    annotation["id"] = 0
    of_class = sum(a["category_id"] == annotation["category_id"] for a in random_set.coco["annotations"])
    np.testing.assert_allclose(average_recall(), 1 - 1 / of_class / 3)  # the mean of three classes


def test_of_an_image_id_given_twice_the_last_image_gets_all_boxes(random_set):
    first, last = random_set.coco["images"][1], random_set.coco["images"][4]
    last["id"] = first["id"]
    records = _load(random_set)
    assert len(records) == len(random_set.coco["images"]) - 1
    (record,) = [record for record in records if record["image_id"] == first["id"]]
    assert record["file_name"].endswith(last["file_name"])
    assert [a["bbox"] for a in record["annotations"]] == [
        a["bbox"] for a in random_set.coco["annotations"] if a["image_id"] == first["id"]
    ]


def test_annotations_of_unknown_images_and_of_degenerate_polygons_are_dropped(random_set):
    number = len(random_set.coco["annotations"])
    random_set.coco["annotations"][3]["image_id"] = 900
    random_set.coco["annotations"][7]["segmentation"] = [[1.0, 1.0, 9.0, 9.0]]
    random_set.coco["annotations"][9]["segmentation"] = []
    assert sum(len(record["annotations"]) for record in _load(random_set)) == number - 2


def test_sixteen_bits_become_white_and_hidden_pixels_show(random_set, tmp_path):
    deep = random_set.rng.integers(0, 2**16, (50, 60)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png", "BGR")[:, :, 0], deep.clip(max=255))
    hidden = random_set.rng.integers(0, 256, (50, 60, 4), dtype=np.uint8)
    hidden[:, :, 3] = 0
    Image.fromarray(hidden).save(tmp_path / "hidden.png")
    np.testing.assert_array_equal(read_image(tmp_path / "hidden.png", "RGB"), hidden[:, :, :3])


def test_what_is_not_0_in_iscrowd_is_left_out_of_training(random_set):
    annotation = random_set.some()
    annotation["iscrowd"] = "0"
    image = random_set.image_of(annotation)
    (record,) = [record for record in _load(random_set) if record["image_id"] == image["id"]]
    assert sum(a["iscrowd"] == 0 for a in record["annotations"]) == 3
