"""Tiles of training images: their boxes, pixels and place in the training stream."""

import copy
import itertools

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode
from PIL import Image
from torch.utils.data import Dataset

from retina_plugin import ConfigError
from retina_plugin.core.tiles import make_tiles
from retina_plugin.data.loader import build_resumable_train_loader
from retina_plugin.data.tiles import MIN_VISIBLE, TileMapper, cut_boxes, tile_records

SIZE, OVERLAP = 40, 12


def test_boxes_are_cut_at_the_edge(seed):
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.integers(60, 260, (300, 2)), np.zeros((300, 2), int)], 1)
    boxes[:, 2:] = boxes[:, :2] + rng.integers(1, 70, (300, 2))
    index, cut, share = cut_boxes(boxes, (100, 200, 180, 300))
    indices, wanted, shares = [], [], []
    for i, (x0, y0, x1, y1) in enumerate(boxes):  # by counting pixels
        columns, rows = set(range(x0, x1)) & set(range(100, 180)), set(range(y0, y1)) & set(range(200, 300))
        if columns and rows:
            indices.append(i)
            wanted.append([min(columns) - 100, min(rows) - 200, max(columns) - 99, max(rows) - 199])
            shares.append(len(columns) * len(rows) / ((x1 - x0) * (y1 - y0)))
    assert 0 < len(wanted) < 300
    assert index.tolist() == indices
    assert cut.tolist() == wanted
    assert share.tolist() == pytest.approx(shares)


@pytest.fixture
def images(make_images, tmp_path):
    """Dataset dicts of "images": three small ones, and two large ones, of which the second has one object."""
    dicts = make_images(3)
    rng = np.random.default_rng(np.random.randint(2**31))
    for i, (width, height, count) in enumerate([(101, 90, 12), (60, 131, 1)], 3):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        boxes = []
        for k in range(count):
            x, y, w, h = (float(n) for n in (rng.integers(0, width - 4), rng.integers(0, height - 4), 30, 20))
            box = [x, y, min(w, width - x), min(h, height - y)]  # some are cut by the image's own edge
            boxes.append({"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": k % 3, "iscrowd": int(k == 1)})
            boxes[-1] |= {"segmentation": [[x, y, x + 1, y, x, y + 1]], "keypoints": [x, y, 2], "area": 1.0}
        size = {"width": width, "height": height, "sem_seg_file_name": "none.png"}
        dicts.append({"file_name": str(path), "image_id": i, **size, "annotations": boxes})
    return dicts


@pytest.fixture
def cfg(cfg):
    cfg.INPUT.TILE.SIZE, cfg.INPUT.TILE.OVERLAP = SIZE, OVERLAP
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN = "none", (60,)
    return cfg


def all_of(loader):
    return [loader.images[i] for i in range(len(loader.images))]


def test_each_large_image_becomes_its_tiles(images):
    before = copy.deepcopy(images)
    records = list(tile_records(images, SIZE, OVERLAP))
    assert images == before
    small, large = before[:3], before[3:]
    assert records[:3] == small
    tiles = [tile for image in large for tile in make_tiles(image["height"], image["width"], SIZE, OVERLAP)]
    assert len(records) == 3 + len(tiles) > 20
    for record, tile in zip(records[3:], tiles):
        image = before[record["image_id"]]
        assert record["tile"] == tile.rectangle and record["file_name"] == image["file_name"]
        assert (record["width"], record["height"]) == (tile.x1 - tile.x0, tile.y1 - tile.y0)
        assert record["file_size"] == (image["width"], image["height"])
        assert "sem_seg_file_name" not in record
        wanted = []
        for annotation in image["annotations"]:
            x, y, w, h = annotation["bbox"]
            x0, y0, x1, y1 = max(x, tile.x0), max(y, tile.y0), min(x + w, tile.x1), min(y + h, tile.y1)
            if x0 < x1 and y0 < y1:
                crowd = annotation["iscrowd"] or (x1 - x0) * (y1 - y0) < MIN_VISIBLE * w * h
                box = [x0 - tile.x0, y0 - tile.y0, x1 - tile.x0, y1 - tile.y0]
                label = {"category_id": annotation["category_id"], "iscrowd": int(crowd)}
                wanted.append({"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, **label})
        assert record["annotations"] == wanted


def test_an_example_is_a_crop_of_the_image(images, cfg):
    """Detectron2's own mapper with a crop in front of its augmentations is the reference."""
    loader, plain = build_resumable_train_loader(cfg), DatasetMapper(cfg, True)
    examples = {
        (x["image_id"], x.get("tile")): x
        for x in itertools.chain.from_iterable(itertools.islice(loader, loader.num_images))
    }
    assert len(examples) == loader.num_images
    for record in all_of(loader):
        x0, y0, x1, y1 = record.get("tile", (0, 0, record["width"], record["height"]))
        crop = T.CropTransform(x0, y0, x1 - x0, y1 - y0)
        image = {**images[record["image_id"]]}
        image.pop("sem_seg_file_name", None)
        kept = [a.get("iscrowd", 0) == 0 for a in record["annotations"]]
        inside = [a for a in image["annotations"] if "tile" not in record or overlaps(a["bbox"], record["tile"])]
        assert len(inside) == len(kept)
        image["annotations"] = [a for a, keep in zip(inside, kept) if keep]
        mapper = DatasetMapper(
            is_train=True, augmentations=[crop, *plain.augmentations.augs], image_format=plain.image_format
        )
        expected, example = mapper(image), examples[record["image_id"], record.get("tile")]
        assert torch.equal(example["image"], expected["image"])
        ours, theirs = example["instances"], expected["instances"]
        assert ours.image_size == theirs.image_size and ours.get_fields().keys() == {"gt_boxes", "gt_classes"}
        assert torch.allclose(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert torch.equal(ours.gt_classes, theirs.gt_classes)


def overlaps(xywh, rectangle):
    (x, y, w, h), (x0, y0, x1, y1) = xywh, rectangle
    return x < x1 and y < y1 and x + w > x0 and y + h > y0


def test_tiles_without_objects_are_dropped_as_images_are(images, cfg):
    everything = list(tile_records(images, SIZE, OVERLAP))
    with_objects = [r for r in everything if any(a.get("iscrowd", 0) == 0 for a in r["annotations"])]
    assert 0 < len(with_objects) < len(everything)
    assert all_of(build_resumable_train_loader(cfg)) == with_objects
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert all_of(build_resumable_train_loader(cfg)) == everything


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_a_run_goes_on_with_the_tiles_that_come_next(images, cfg, sampler):
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = sampler, (30, 50), "horizontal"
    loader = build_resumable_train_loader(cfg)
    next(loader)
    resumed = build_resumable_train_loader(cfg)
    resumed.load_state_dict(loader.state_dict())
    for _ in range(4):
        for ours, theirs in zip(next(resumed), next(loader), strict=True):
            assert ours.get("tile") == theirs.get("tile") and torch.equal(ours["image"], theirs["image"])
            assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)


def test_batches_are_grouped_by_the_sides_of_tiles(images, cfg):
    """All tiles of an image wider than high are squares here, which belong to those that are not wide."""
    loader = build_resumable_train_loader(cfg)
    for batch in itertools.islice(loader.indices(), 10):
        assert len({loader.images[i]["width"] > loader.images[i]["height"] for _, i, _ in batch}) == 1


def test_objects_larger_than_tiles_are_counted_or_refused(images, cfg, caplog):
    for image in images:
        box = [2.0, 3.0, image["width"] - 2.0, image["height"] - 3.0]
        image["annotations"] = [{"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}]
    with caplog.at_level("WARNING", logger="retina_plugin"):
        assert len(all_of(build_resumable_train_loader(cfg))) == 3  # the small images
    assert "2 objects are less than half in any tile" in caplog.text
    del images[:3]
    with pytest.raises(
        ConfigError, match="INPUT.TILE.SIZE is 40, but no object of DATASETS.TRAIN is at least half in a"
    ):
        build_resumable_train_loader(cfg)


def test_a_file_of_another_size_is_refused(images, cfg):
    record = [r for r in tile_records(images, SIZE, OVERLAP) if "tile" in r][0]
    Image.new("RGB", (300, 300)).save(record["file_name"])
    with pytest.raises(SizeMismatchError, match=r"got \(300, 300\), expect \(101, 90\)"):
        TileMapper(DatasetMapper(cfg, True))(record)


def test_an_image_is_decoded_once_for_tiles_that_follow_each_other(images, cfg):
    """The file may be gone after the first."""
    first, *_, last = [r for r in tile_records(images, SIZE, OVERLAP) if r["image_id"] == 3]
    mapper = TileMapper(DatasetMapper(cfg, True))
    mapper(first)
    (path,) = {first["file_name"], last["file_name"]}
    pixels = np.asarray(Image.open(path))
    open(path, "wb").close()
    mapper._mapper.augmentations = T.AugmentationList([])
    x0, y0, x1, y1 = last["tile"]
    assert np.array_equal(mapper(last)["image"].permute(1, 2, 0), pixels[y0:y1, x0:x1, ::-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda image: image.pop("width"), "3.png cannot be cut into tiles: KeyError: 'width'"),
        (lambda image: image["annotations"][0].pop("bbox"), "3.png cannot be cut into tiles: KeyError: 'bbox'"),
        (lambda image: image["annotations"][0].update(bbox=[1, 2]), "3.png cannot be cut into tiles"),
        (lambda image: image["annotations"][0].update(bbox_mode=7), "3.png cannot be cut into tiles"),
    ],
)
def test_dicts_that_cannot_be_cut(images, cfg, damage, message):
    damage(images[3])
    with pytest.raises(ConfigError, match=message):
        build_resumable_train_loader(cfg)


def test_mappers_and_data_sets_that_know_no_tiles(images, cfg):
    with pytest.raises(ConfigError, match="not by a function: set INPUT.TILE.SIZE to 0"):
        build_resumable_train_loader(cfg, mapper=lambda image: image)

    class Images(Dataset):
        def __len__(self):
            return 2

    DatasetCatalog.remove("images")
    DatasetCatalog.register("images", Images)
    with pytest.raises(ConfigError, match="DATASETS.TRAIN .images. is no list of dicts"):
        build_resumable_train_loader(cfg)
