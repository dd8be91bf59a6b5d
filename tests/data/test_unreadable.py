"""Training images that cannot be read: replaced, reported, and bounded."""

import itertools
import logging
import os

import pytest
import torch
from PIL import Image

from retina_plugin.core.errors import TrainingDataError
from retina_plugin.data.loader import build_resumable_train_loader
from retina_plugin.data.reading import LOGGED_IMAGES, MAX_SUBSTITUTES, UnreadableImages


def damage(dicts):
    """Four images with a defect each; returns a part of what is said of it by number of the image."""
    os.remove(dicts[0]["file_name"])
    with open(dicts[1]["file_name"], "r+b") as file:
        file.truncate(os.path.getsize(file.name) // 2)
    with open(dicts[2]["file_name"], "wb") as file:
        file.write(b"no image")
    Image.new("RGB", (31, 7)).save(dicts[3]["file_name"])
    return {0: "FileNotFoundError", 1: "truncated", 2: "cannot identify image", 3: "got (31, 7), expect"}


def read(stream, steps):
    """Ids of the images, and the reports of all steps."""
    batches = [[x["image_id"] for x in batch] for batch in itertools.islice(stream, steps)]
    return batches, stream.pop_reports()


def test_another_image_of_the_same_group_takes_the_place(make_images, cfg, seed):
    dicts = make_images(40)
    reasons = damage(dicts)
    stream = build_resumable_train_loader(cfg)
    batches, reports = read(stream, 40)
    planned = [[index for _, index, _ in batch] for batch in itertools.islice(stream.indices(), 40)]
    assert any(index < 4 for batch in planned for index in batch)
    for batch, plan in zip(batches, planned):
        for image, index in zip(batch, plan):
            assert image == index or (index < 4 <= image)
            assert (dicts[image]["width"] > dicts[image]["height"]) == (dicts[index]["width"] > dicts[index]["height"])
    said = dict(reports)
    for number, part in reasons.items():
        assert part in said[dicts[number]["file_name"]]
    assert len(said) == 4


def test_substitutes_do_not_depend_on_the_workers_or_on_when_the_run_was_resumed(make_images, cfg):
    dicts = make_images(30)
    damage(dicts)
    first = build_resumable_train_loader(cfg)
    state = first.state_dict()
    batches, reports = read(first, 20)
    cfg.DATALOADER.NUM_WORKERS = 2
    for step in (0, 9):
        other = build_resumable_train_loader(cfg)
        other.load_state_dict({**state, "step": step})
        others_batches, others_reports = read(other, 20 - step)
        assert others_batches == batches[step:]
        assert others_reports == reports if step == 0 else others_reports == reports[-len(others_reports) :]


def test_a_folder_that_is_not_there_fails_at_once_and_names_files(make_images, cfg):
    dicts = make_images(60)
    for image in dicts:
        image["file_name"] = image["file_name"].replace(".png", ".jpg")
    stream = build_resumable_train_loader(cfg)
    with pytest.raises(TrainingDataError) as error:
        next(stream)
    text = str(error.value)
    assert "none of the first" in text and "FileNotFoundError" in text and ".jpg" in text and "Is the folder" in text
    assert len(stream.unreadable) <= MAX_SUBSTITUTES + 1


def test_mistakes_in_a_program_are_not_taken_for_unreadable_images(make_images, cfg):
    make_images(5)
    with pytest.raises(KeyError, match="no such key"):
        next(build_resumable_train_loader(cfg, mapper=lambda image: image["no such key"]))


def test_a_mapper_may_leave_images_out(make_images, cfg):
    make_images(12)
    stream = build_resumable_train_loader(cfg, mapper=lambda image: image if image["image_id"] % 2 else None)
    batches, reports = read(stream, 12)
    assert {i for batch in batches for i in batch} <= {1, 3, 5, 7, 9, 11} and reports == []


def test_when_nothing_can_be_read_any_more_the_last_example_bridges_the_step(make_images, cfg):
    """So that all processes end the step, after which they stop with a checkpoint."""
    dicts = make_images(30)
    stream = build_resumable_train_loader(cfg)
    last = next(stream)[-1]
    for image in dicts:
        os.remove(image["file_name"])
    assert all(torch.equal(example["image"], last["image"]) for example in next(stream))
    said = {name for name, _ in stream.pop_reports()}
    groups = [{x["file_name"] for x in dicts if (x["width"] > x["height"]) == wide} for wide in (True, False)]
    assert said in groups or len(said) > MAX_SUBSTITUTES, "all that there are of the group of the image were tried"


def test_a_file_is_reported_once_many_are_counted_and_the_limit_stops(caplog):
    images = UnreadableImages(limit=45)
    with caplog.at_level(logging.WARNING):
        for i in range(45):
            images.add([(f"{i}.jpg", "OSError: cut"), (f"{i // 2}.jpg", "OSError: again")])
            images.check()
    lines = [record.getMessage() for record in caplog.records]
    assert len(images) == 45
    assert lines[:LOGGED_IMAGES] == [
        f"{i}.jpg cannot be read (OSError: cut): another image is taken.{' Further ones are only counted' * (i == 9)}"
        for i in range(LOGGED_IMAGES)
    ]
    assert lines[LOGGED_IMAGES:] == [f"{n} training images could not be read so far." for n in (20, 40)]
    images.add([("one more.jpg", "OSError: cut")])
    with pytest.raises(TrainingDataError, match=r"46 different .* allows 45:\n  0.jpg: OSError: cut\n(.*\n)*.*41 more"):
        images.check()
    resumed = UnreadableImages(limit=45)
    resumed.load_state_dict(images.state_dict())
    assert len(resumed) == 46


@pytest.mark.parametrize("count, asked, limit", [(30, -1, 10), (30, 3, 3), (30, 0, 0), (2000, -1, 20)])
def test_the_limit_is_a_hundredth_and_at_least_ten_unless_set(make_images, cfg, count, asked, limit):
    dicts = make_images(2)
    dicts.extend(dict(dicts[0], image_id=i) for i in range(2, count))
    cfg.DATALOADER.MAX_UNREADABLE = asked
    assert build_resumable_train_loader(cfg).unreadable.limit == limit
