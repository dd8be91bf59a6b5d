"""The laws of tiled inference, with a perfect detector and with a network."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from retina_plugin import ConfigError
from retina_plugin.core.tiles import make_tiles
from retina_plugin.data.windows import ArrayWindows, WindowsMapper
from retina_plugin.modeling.inference.merge import merge_tiles
from retina_plugin.modeling.inference.tiled import TiledInference
from tests.checkpoint.conftest import small_config, small_model


class Oracle(nn.Module):
    """Finds every object of which a tile shows a part: its box, clipped to the tile, with any score.

    A pixel of its image is its own place, (y, x). In each tile, boxes are moved by up to ``shift`` of their sides.
    """

    def __init__(self, boxes, classes, seed, shift=0.0):
        super().__init__()
        self.boxes, self.classes, self.seed, self.shift = boxes, classes, seed, shift
        self.batch_sizes = []

    def forward(self, batch):
        self.batch_sizes.append(len(batch))
        return [{"instances": self.find(image["image"], image["height"], image["width"])} for image in batch]

    def find(self, pixels, height, width):
        assert pixels.shape[1:] == (height, width)
        y0, x0 = (int(value) for value in pixels[:, 0, 0])
        rng = np.random.default_rng((self.seed, y0, x0))
        found = Instances((height, width))
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        shift = torch.tensor(rng.uniform(-self.shift, self.shift, (len(self.boxes), 2))).float() * sides
        boxes = Boxes(self.boxes + shift.repeat(1, 2) - torch.tensor([x0, y0] * 2))
        boxes.clip((height, width))
        found.pred_boxes, found.pred_classes = boxes, self.classes
        found.scores = torch.tensor(rng.integers(1, 5, len(self.boxes)) / 4).float()  # many are equal
        found = found[boxes.nonempty()]
        return found[found.scores.argsort(descending=True, stable=True)]


def places(height, width):
    return ArrayWindows(np.stack(np.mgrid[:height, :width], 2).astype(np.float32))


def tiled(model, size, overlap, batch_size=1, max_detections=10**6, nms_thresh=0.5):
    limits = {"nms_thresh": nms_thresh, "max_detections_per_image": max_detections}
    return TiledInference(
        model, tile_size=size, overlap=overlap, batch_size=batch_size, augmentations=[], **limits
    ).eval()


def objects(rng, count, height, width, largest):
    """Boxes of whole pixels in an image, the half of them as large as they may be."""
    sides = rng.integers(1, largest + 1, (count, 2))
    sides[::2] = largest
    corner = rng.integers(0, np.array([width, height]) - sides + 1)
    return torch.tensor(np.concatenate([corner, corner + sides], 1)).float()


def as_rows(detections):
    return torch.cat([detections.pred_boxes.tensor, detections.scores[:, None], detections.pred_classes[:, None]], 1)


def assert_equal(a, b):
    assert a.image_size == b.image_size
    assert torch.equal(as_rows(a), as_rows(b))


def draw(rng):
    height, width, size = (int(n) for n in rng.integers((90, 90, 40), (200, 200, 80)))
    return height, width, size, int(rng.integers(5, 3 * size // 4))


@pytest.mark.parametrize("nms_thresh", [0.3, 0.5, 0.76])
def test_an_object_up_to_the_overlap_is_found_once_with_its_box(seed, nms_thresh):
    rng = np.random.default_rng(seed)
    for _ in range(4):
        height, width, size, overlap = draw(rng)
        boxes = objects(rng, 200, height, width, min(overlap, height, width))
        oracle = Oracle(boxes, torch.arange(200), seed)
        found = tiled(oracle, size, overlap, nms_thresh=nms_thresh).detect(places(height, width))
        assert sorted(found.pred_classes.tolist()) == list(range(200))
        assert torch.equal(found.pred_boxes.tensor, boxes[found.pred_classes])
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_an_object_that_tiles_locate_differently_is_found_once(seed):
    """Its centers, of which one or none is in the core of its tile, differ by up to a tenth of its sides."""
    rng = np.random.default_rng(seed)
    for _ in range(10):
        height, width, size = 300, 300, 100
        overlap = int(rng.integers(32, 64))
        boxes = objects(rng, 300, height, width, overlap // 2)
        oracle = Oracle(boxes, torch.arange(300), seed, shift=0.05)
        found = tiled(oracle, size, overlap).detect(places(height, width))
        assert sorted(found.pred_classes.tolist()) == list(range(300))


def test_an_object_larger_than_all_tiles_is_found_in_pieces():
    found = tiled(Oracle(torch.tensor([[0.0, 10, 100, 20]]), torch.tensor([0]), 0), 40, 10).detect(places(30, 100))
    boxes = found.pred_boxes.tensor
    assert boxes[boxes[:, 0].argsort()].tolist() == [[0, 10, 40, 20], [30, 10, 70, 20], [60, 10, 100, 20]]


def test_neither_the_order_of_tiles_nor_their_number_in_a_batch_matters(seed):
    rng = np.random.default_rng(seed)
    height, width, size, overlap = draw(rng)
    boxes = objects(rng, 300, height, width, min(2 * overlap, height, width))  # pieces, too
    classes = torch.tensor(rng.integers(0, 3, 300))
    image = places(height, width)
    one = Oracle(boxes, classes, seed, shift=0.1)
    everything = tiled(one, size, overlap).detect(image)
    most = len(everything) // 2
    expected = everything[:most]
    assert most > 20
    for batch_size in (2, 5, 10**6):
        oracle = Oracle(boxes, classes, seed, shift=0.1)
        assert_equal(tiled(oracle, size, overlap, batch_size, most).detect(image), expected)
        assert max(oracle.batch_sizes) == min(batch_size, len(one.batch_sizes))
        assert sum(oracle.batch_sizes) == len(one.batch_sizes)
    tiles = make_tiles(height, width, size, overlap)
    inputs = [torch.from_numpy(image.read(*tile.rectangle)).permute(2, 0, 1) for tile in tiles]
    found = [(tile, one.find(pixels, *pixels.shape[1:])) for tile, pixels in zip(tiles, inputs)]
    limits = {"overlap": overlap, "nms_thresh": 0.5, "max_detections_per_image": most}
    for order in (rng.permutation(len(found)) for _ in range(5)):
        assert_equal(merge_tiles([found[i] for i in order], (height, width), **limits), expected)


def test_nothing_is_found_in_nothing():
    nothing = Oracle(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 0)
    assert len(tiled(nothing, 40, 10).detect(places(100, 100))) == 0


def test_boxes_of_a_thousand_classes_far_from_the_origin_are_not_rounded():
    """Two objects side by side, whose boxes touch, in the overlap of two tiles near the end of a large image."""
    tiles = make_tiles(64, 20_000, 64, 32)[-2:]
    x, classes = tiles[1].x0 + 10, torch.tensor([1200, 1200])
    boxes = torch.tensor([[x, 10.0, x + 1, 11], [x + 1, 10.0, x + 2, 11]])
    found = []
    for tile in tiles:
        inside = Boxes(boxes - torch.tensor([tile.x0, tile.y0] * 2))
        found.append(
            (tile, Instances((64, 64), pred_boxes=inside, scores=torch.tensor([0.9, 0.8]), pred_classes=classes))
        )
    merged = merge_tiles(found, (64, 20_000), overlap=32, nms_thresh=0.5, max_detections_per_image=9)
    assert torch.equal(merged.pred_boxes.tensor, boxes)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(int(np.random.randint(2**31)))
    model = small_model("MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    nn.init.normal_(model.head.cls_score.weight, std=0.5)
    return model


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.randint(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return {"file_name": str(tmp_path / "photo.png"), "height": 90, "width": 120, "image_id": 3, "annotations": []}


@pytest.mark.parametrize("size", [120, 5000])
@torch.no_grad()
def test_one_tile_gives_the_images_own_detections(network, photo, size):
    opts = ("INPUT.MIN_SIZE_TEST", 64, "TEST.TILE.SIZE", size, "INPUT.FORMAT", "BGR")
    cfg = small_config(*opts)
    expected = network([DatasetMapper(cfg, is_train=False)(photo)])[0]["instances"]
    image = WindowsMapper(cfg.INPUT.FORMAT)(photo)
    assert image.keys() == {"file_name", "height", "width", "image_id", "windows"}
    (found,) = TiledInference(cfg, network)([image])
    assert len(expected) == 100
    assert found["instances"].get_fields().keys() == expected.get_fields().keys()
    assert_equal(found["instances"], expected)
    assert image["image"].shape == (3, 64, 85) and "windows" not in image


def test_a_network_finds_the_same_in_batches_up_to_rounding(network, photo):
    opts = ("INPUT.MIN_SIZE_TEST", 64, "TEST.TILE.SIZE", 64, "TEST.TILE.OVERLAP", 20)
    network, windows = network.double(), WindowsMapper("BGR")(photo)["windows"]
    try:
        one, three = (
            TiledInference(small_config(*opts, "TEST.TILE.BATCH", n), network).detect(windows) for n in (1, 3)
        )
    finally:
        network.float()
    assert len(one) == len(three) == 100
    assert torch.allclose(as_rows(one), as_rows(three), rtol=1e-5)


def test_the_mode_of_the_model_is_that_of_its_wrapper(network):
    cfg = small_config("TEST.TILE.SIZE", 500)
    assert not TiledInference(cfg, network.eval()).training
    assert TiledInference(cfg, network.train()).training and network.training
    network.eval()


def test_images_of_another_loader_are_refused(network):
    with pytest.raises(ConfigError, match="TEST.TILE.SIZE is 500, but the test loader gives images that are read"):
        TiledInference(small_config("TEST.TILE.SIZE", 500), network)([{"image": torch.zeros(3, 64, 64)}])
