"""The training stream: Detectron2's order, the same for any number of workers, and continued by counting."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, build_detection_train_loader
from torch.utils.data import Dataset

from retina_plugin.core.errors import TrainingDataError
from retina_plugin.data.loader import build_resumable_train_loader

COUNT = 23


def unmapped(image):
    return image


def randomness(image):
    """An example that shows all generators that a mapper may draw from."""
    return image["image_id"], random.random(), np.random.rand(), torch.rand(()).item()


def take(loader, steps):
    return list(itertools.islice(loader, steps))


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"])
def test_the_order_is_that_of_detectron2s_loader_with_the_same_seed(make_images, cfg, seed, sampler, grouping):
    dicts = make_images(COUNT)
    dicts[5]["annotations"][0]["category_id"] = 3  # rare
    cfg.merge_from_list(["DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.REPEAT_THRESHOLD", 0.5])
    cfg.merge_from_list(["DATALOADER.ASPECT_RATIO_GROUPING", grouping])
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.7  # a key of newer versions
    cfg.SEED = seed % 2**31  # which newer versions hand to the sampler
    orders, after = [], []
    for build in (build_detection_train_loader, build_resumable_train_loader):
        np.random.seed(seed)
        batches = take(build(cfg, mapper=unmapped), 30)
        orders.append([[image["image_id"] for image in batch] for batch in batches])
        after.append(np.random.rand())
    assert orders[0] == orders[1]
    assert after[0] == after[1], "what is drawn next is the same, too"
    assert len({tuple(batch) for batch in orders[0]}) > 20


def test_with_one_process_examples_are_those_of_the_default_mapper(make_images, cfg):
    """In size, boxes and classes; flips and sizes are drawn from other random numbers."""
    dicts = make_images(5)
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN = "none", (32,)
    batch = next(build_resumable_train_loader(cfg))
    theirs = {x["image_id"]: x for x in sum(take(build_detection_train_loader(cfg), 8), [])}
    assert len(batch) == 4 and len(theirs) == len(dicts)
    for example in batch:
        expected = theirs[example["image_id"]]
        assert torch.equal(example["image"], expected["image"])
        assert torch.equal(example["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
        assert torch.equal(example["instances"].gt_classes, expected["instances"].gt_classes)


@pytest.mark.parametrize("grouping", [True, False])
def test_examples_do_not_depend_on_the_number_of_workers(make_images, cfg, seed, grouping):
    make_images(COUNT)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    taken = []
    for workers in (0, 1, 3):
        cfg.DATALOADER.NUM_WORKERS = workers
        np.random.seed(seed)
        taken.append(take(build_resumable_train_loader(cfg, mapper=randomness), 15))
        torch.rand(7), random.random()  # what else was drawn does not matter
    assert taken[0] == taken[1] == taken[2]
    values = [x for batch in taken[0] for x in batch]
    assert len({x[1:] for x in values}) == len(values), "two positions have different numbers, also of one image"


def test_reading_leaves_the_generators_of_the_step_alone(make_images, cfg):
    make_images(6)
    stream = build_resumable_train_loader(cfg, mapper=randomness)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    take(stream, 3)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RandomSubsetTrainingSampler"])
def test_goes_on_from_a_state_without_reading_what_was_before(make_images, cfg, sampler):
    make_images(COUNT)
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.RANDOM_SUBSET_RATIO = sampler, 0.7
    stream = build_resumable_train_loader(cfg, mapper=randomness)
    steps = random.randrange(1, 40)
    take(stream, steps)
    state = stream.state_dict()
    expected = take(stream, 6)

    read = []
    np.random.seed()
    other = build_resumable_train_loader(
        cfg, mapper=lambda image: (read.append(image["image_id"]), randomness(image))[1]
    )
    other.load_state_dict(state)
    assert take(other, 6) == expected and len(read) == 24
    other.load_state_dict(state)
    assert take(other, 6) == expected, "also after it had begun"
    assert other.state_dict() == {**state, "step": steps + 6} or sampler != "TrainingSampler"


def test_with_another_batch_size_no_image_is_taken_twice_in_an_epoch(make_images, cfg):
    make_images(24)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    stream = build_resumable_train_loader(cfg, mapper=unmapped)
    first = sum(take(stream, 3), [])
    cfg.SOLVER.IMS_PER_BATCH = 2
    other = build_resumable_train_loader(cfg, mapper=unmapped)
    other.load_state_dict(stream.state_dict())
    assert sorted(x["image_id"] for x in first + sum(take(other, 6), [])) == list(range(24))


def test_another_data_set_starts_anew_with_a_warning(make_images, cfg, caplog):
    dicts = make_images(COUNT)
    stream = build_resumable_train_loader(cfg, mapper=unmapped)
    take(stream, 3)
    dicts.pop()
    other = build_resumable_train_loader(cfg, mapper=unmapped)
    other.load_state_dict(stream.state_dict())
    assert "starts anew: the checkpoint's is of 23 images" in caplog.text
    assert other.state_dict()["step"] == 0


def test_shares_of_the_processes_are_the_batch(make_images, cfg):
    """Worked out from the indices; real processes are in tests/engine/test_killed_training.py."""
    make_images(COUNT)
    stream = build_resumable_train_loader(cfg, mapper=unmapped)
    examples = take(stream, 20)
    batches = [[x["image_id"] for x in batch] for batch in examples]
    for batch, items in zip(batches, stream.indices()):
        assert [index for _, index, _ in items] == batch
        halves = [items[rank::2] for rank in (0, 1)]
        assert sorted(halves[0] + halves[1]) == sorted(items)
    assert list(itertools.islice(stream.indices(7), 9)) == list(itertools.islice(stream.indices(), 16))[7:]
    assert all(len({x["width"] > x["height"] for x in batch}) == 1 for batch in examples)


SIDES = {
    "NumPy": np.int64,
    "uint16": np.uint16,
    "float32": np.float32,
    "float": float,
    "tensor": torch.tensor,
    "0-d array": np.array,
}


@pytest.mark.parametrize("sides", SIDES)
def test_sides_of_other_types_are_grouped_as_plain_ones(make_images, cfg, seed, sides):
    """Detectron2's own loader takes them."""
    dicts, orders = make_images(COUNT), []
    for convert in (int, SIDES[sides]):
        for image in dicts:
            image.update(width=convert(int(image["width"])), height=convert(int(image["height"])))
        for build in (build_detection_train_loader, build_resumable_train_loader):
            np.random.seed(seed)
            cfg.SEED = seed % 2**31
            orders.append([[image["image_id"] for image in batch] for batch in take(build(cfg, mapper=unmapped), 12)])
    assert orders[0] == orders[1] == orders[2] == orders[3]


class _Pairs(Dataset):
    def __init__(self, dicts):
        self.dicts = dicts

    def __len__(self):
        return len(self.dicts)

    def __getitem__(self, index):
        return self.dicts[index], "anything"


def test_a_data_set_of_other_items_than_dicts_is_for_its_mapper(make_images, cfg):
    """Detectron2's own loader looks at what the mapper returns only."""
    make_images(COUNT)
    dicts = DatasetCatalog.pop("images")()
    DatasetCatalog.register("images", lambda: _Pairs(dicts))
    for build in (build_detection_train_loader, build_resumable_train_loader):
        batches = take(build(cfg, mapper=lambda item: item[0]), 5)
        assert {image["image_id"] for batch in batches for image in batch} <= set(range(COUNT))

    def unreadable(item):
        raise OSError("gone")

    with pytest.raises(TrainingDataError, match="image [0-9]+: OSError: gone"):
        next(build_resumable_train_loader(cfg, mapper=unreadable))
