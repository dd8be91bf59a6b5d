"""The quick-start set: is it what its docstring says, and is it written safely?"""

import json
import os
import signal
import sys
from collections import defaultdict

import numpy as np
import pytest
import torch

import retina_plugin  # noqa: F401  isort: skip

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from pycocotools.coco import COCO
from sklearn.datasets import load_digits, load_sample_images

from retina_plugin.data.datasets import digits

NAMES = ("quick_start_digits_train", "quick_start_digits_test")
FOLDER = f"quick_start_digits_v{digits.RECIPE_VERSION}"


def remove_from_catalogs():
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder, with the sets registered there. The set is built by the first test that loads it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINA_PLUGIN_CACHE", str(folder))
        remove_from_catalogs()
        digits.register_digits(digits.DigitsRecipe())
    yield folder
    remove_from_catalogs()
    digits.register_digits(digits.DigitsRecipe())


@pytest.fixture(scope="module")
def coco(cache):
    """Both parts as they are written: ``{"train": {...}, "test": {...}}``."""
    for name in NAMES:
        DatasetCatalog.get(name)
    return {split: json.loads((cache / FOLDER / f"{split}.json").read_text()) for split in ("train", "test")}


@pytest.fixture
def few_images(monkeypatch):
    for split in digits.SPLITS.values():
        monkeypatch.setitem(split, "images", 3)


def read_folder(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name, images", [(NAMES[0], 800), (NAMES[1], 200)])
def test_loads_through_the_catalog_with_contiguous_classes(coco, name, images):
    records = DatasetCatalog.get(name)
    assert len(records) == images
    assert {a["category_id"] for r in records for a in r["annotations"]} == set(range(10))
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
    assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in range(10)}
    assert metadata.evaluator_type == "coco"
    with Image.open(records[-1]["file_name"]) as image:
        assert image.size == (records[-1]["width"], records[-1]["height"])


def test_detectron2s_evaluator_may_be_built_before_the_set_is_loaded(few_images, tmp_path, monkeypatch):
    """The order of Detectron2's tutorial: COCOEvaluator, then build_detection_test_loader, then inference."""
    monkeypatch.setenv("RETINA_PLUGIN_CACHE", str(tmp_path / "cache"))
    recipe = digits.DigitsRecipe(name="evaluator_first")
    digits.register_digits(recipe)
    name = "evaluator_first_test"
    cfg = get_cfg()
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"), use_fast_impl=False)
    records = [inputs[0] for inputs in build_detection_test_loader(cfg, name, mapper=lambda record: record)]
    evaluator.reset()
    for record in records:
        found = Instances((recipe.side, recipe.side))
        corners = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]]
        found.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]], dtype=torch.int64)
        found.scores = torch.full((len(corners),), 0.9)
        evaluator.process([record], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] > 99.9
    for split in digits.SPLITS:
        DatasetCatalog.remove(f"evaluator_first_{split}")
        MetadataCatalog.remove(f"evaluator_first_{split}")


@pytest.mark.parametrize("split", ["train", "test"])
def test_is_valid_coco(coco, cache, split):
    api = COCO(str(cache / FOLDER / f"{split}.json"))
    assert len(api.getImgIds()) == len(coco[split]["images"])
    # pycocotools keeps annotations by id, so a repeated id would make them fewer.
    assert len(api.getAnnIds()) == len(coco[split]["annotations"])
    for annotation in api.anns.values():
        x, y, width, height = annotation["bbox"]
        image = api.imgs[annotation["image_id"]]
        assert 0 <= x < x + width <= image["width"] and 0 <= y < y + height <= image["height"]
        assert annotation["area"] == width * height and annotation["iscrowd"] == 0
    files = sorted(p.name for p in (cache / FOLDER / split).iterdir())
    assert files == [image["file_name"] for image in api.imgs.values()]


def test_every_annotation_has_the_class_of_its_scan(coco):
    targets = load_digits().target
    for split in coco.values():
        names = {c["id"]: c["name"] for c in split["categories"]}
        assert all(names[a["category_id"]] == str(targets[a["scan"]]) for a in split["annotations"])


def test_train_and_test_share_no_scan(coco):
    scans = load_digits().images
    train, test = ({scans[a["scan"]].tobytes() for a in coco[s]["annotations"]} for s in ("train", "test"))
    assert len(train) > 1000 and len(test) > 300
    assert not train & test


def test_train_and_test_share_no_part_of_a_photograph(coco):
    columns = {"train": defaultdict(set), "test": defaultdict(set)}
    for split, used in columns.items():
        for image in coco[split]["images"]:
            x, _, side = image["background"]["square"]
            used[image["background"]["photo"]].update(range(x, x + side))
    for photo in ("china.jpg", "flower.jpg"):
        assert columns["train"][photo] and columns["test"][photo]
        distances = np.subtract.outer(sorted(columns["train"][photo]), sorted(columns["test"][photo]))
        assert np.abs(distances).min() > 16  # one block of the JPEG files lies between


def test_digits_have_many_scales_and_hardly_overlap(coco):
    for split in coco.values():
        boxes = defaultdict(list)
        for a in split["annotations"]:
            boxes[a["image_id"]].append(a["bbox"])
        heights = [box[3] for group in boxes.values() for box in group]
        assert max(heights) >= 5 * min(heights)
        assert 0 < len(split["images"]) - len(boxes) < 0.1 * len(split["images"])  # images without a digit
        for group in boxes.values():
            covered = np.zeros((160, 160), int)
            for x, y, width, height in group:
                assert (covered[y : y + height, x : x + width] > 0).sum() <= 0.2 * width * height
                covered[y : y + height, x : x + width] += 1


def test_images_differ_from_their_photograph_in_the_boxes_only_and_up_to_their_borders(coco, cache):
    samples = load_sample_images()
    names = [os.path.basename(filename) for filename in samples.filenames]
    photos = dict(zip(names, map(Image.fromarray, samples.images), strict=True))
    for image in coco["test"]["images"][::4]:
        x, y, side = image["background"]["square"]
        piece = photos[image["background"]["photo"]].crop((x, y, x + side, y + side))
        before = np.asarray(piece.resize((160, 160), Image.BICUBIC))
        before = (before * 0.5).astype(np.uint8)
        before = np.fliplr(before) if image["background"]["mirrored"] else before
        after = np.asarray(Image.open(cache / FOLDER / "test" / image["file_name"]))
        changed = (before != after).any(axis=2)
        boxes = [a["bbox"] for a in coco["test"]["annotations"] if a["image_id"] == image["id"]]
        for x, y, width, height in boxes:
            box = changed[y : y + height, x : x + width]
            assert box[0].any() and box[-1].any() and box[:, 0].any() and box[:, -1].any()
        for x, y, width, height in boxes:
            changed[y : y + height, x : x + width] = False
        assert not changed.any()


def test_two_builds_have_the_same_bytes(tmp_path, few_images):
    digits.build_digits(tmp_path / "one", digits.DigitsRecipe())
    digits.build_digits(tmp_path / "two", digits.DigitsRecipe())
    one, two = read_folder(tmp_path / "one"), read_folder(tmp_path / "two")
    assert len(one) == 2 * (1 + 3) and one == two


def test_a_set_that_is_there_is_not_built_again(tmp_path, few_images):
    root = tmp_path / "set"
    digits.build_digits(root, digits.DigitsRecipe())
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    digits.build_digits(root, digits.DigitsRecipe())
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_registering_imports_no_scikit_learn_and_writes_nothing(tmp_path, python):
    code = "import sys, retina_plugin.data; print('sklearn' in sys.modules)"
    result = python.run("-c", code, RETINA_PLUGIN_CACHE=tmp_path / "cache")
    assert result.stdout.strip() == "False", result.stderr
    assert not (tmp_path / "cache").exists()


def test_the_configuration_passes_the_checks_before_the_set_is_built(tmp_path, python, request):
    code = (
        "import retina_plugin\n"
        "from detectron2.config import get_cfg\n"
        "cfg = get_cfg()\n"
        "retina_plugin.add_retina_config(cfg)\n"
        f"retina_plugin.merge_config(cfg, {str(request.config.rootpath / 'configs' / 'digits.yaml')!r})\n"
        "retina_plugin.check_config(cfg)\n"
    )
    result = python.run("-c", code, RETINA_PLUGIN_CACHE=tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "cache").exists()


def test_processes_that_build_at_once_end_with_one_whole_set(tmp_path, few_images, python):
    code = (
        "import retina_plugin, os, time\n"
        "from retina_plugin.data.datasets import digits\n"
        "for split in digits.SPLITS.values(): split['images'] = 3\n"
        # All have begun, and found no set, before the first may go on.
        "load = digits._load_sources\n"
        "def load_together():\n"
        f"    started = {str(tmp_path / 'started')!r}\n"
        "    open(f'{started}/{os.getpid()}', 'w').close()\n"
        "    while len(os.listdir(started)) < 3: time.sleep(0.01)\n"
        "    return load()\n"
        "digits._load_sources = load_together\n"
        f"digits.build_digits({str(tmp_path / 'sets' / 'set')!r}, digits.DigitsRecipe())\n"
    )
    (tmp_path / "started").mkdir()
    processes = [python.start("-c", code) for _ in range(3)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0, 0]
    assert [p.name for p in (tmp_path / "sets").iterdir()] == ["set"]
    digits.build_digits(tmp_path / "alone", digits.DigitsRecipe())
    assert read_folder(tmp_path / "sets" / "set") == read_folder(tmp_path / "alone")


def test_a_build_that_fails_leaves_nothing(tmp_path, few_images, monkeypatch):
    write_split = digits._write_split

    def interrupt(folder, split, *args):
        write_split(folder, split, *args)
        if split == "test":
            raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_write_split", interrupt)
    with pytest.raises(KeyboardInterrupt):
        digits.build_digits(tmp_path / "set", digits.DigitsRecipe())
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_is_killed_is_not_taken_for_a_set(tmp_path, few_images, python):
    root = tmp_path / "set"
    code = (
        "import retina_plugin, os, signal\n"
        "from retina_plugin.data.datasets import digits\n"
        "write_split = digits._write_split\n"
        "def kill(folder, split, *args):\n"
        "    if split == 'test': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    digits.SPLITS[split]['images'] = 2\n"
        "    write_split(folder, split, *args)\n"
        "digits._write_split = kill\n"
        f"digits.build_digits({str(root)!r}, digits.DigitsRecipe())\n"
    )
    assert python.run("-c", code, RETINA_PLUGIN_CACHE=tmp_path).returncode == -signal.SIGKILL
    assert not root.exists() and len(list(tmp_path.rglob("*.png"))) == 2
    digits.build_digits(root, digits.DigitsRecipe())
    assert len(list(root.rglob("*.png"))) == 6


def test_says_how_to_get_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        digits.build_digits(tmp_path / "set", digits.DigitsRecipe())


def test_says_how_to_choose_another_cache_folder(tmp_path, few_images):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="RETINA_PLUGIN_CACHE to a folder that can be written") as error:
        digits.build_digits(tmp_path / "file" / "set", digits.DigitsRecipe())
    assert str(tmp_path / "file" / "set") in str(error.value)
