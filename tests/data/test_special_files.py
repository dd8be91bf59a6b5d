"""Named pipes and endless devices in place of files are errors in a line, and are never opened."""

import multiprocessing
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from retina_plugin import ConfigError
from retina_plugin.__main__ import main
from retina_plugin.core.errors import FileError
from retina_plugin.core.failures import explain_failures
from retina_plugin.data.dataset_checks import check_datasets
from retina_plugin.engine import RetinaTrainer
from retina_plugin.tools.visualize.grid import draw_grid

from ..engine.tiny import tiny_config
from .checks.sets import RandomSet

KINDS = {"pipe": os.mkfifo, "zero": lambda path: path.symlink_to("/dev/zero")}
SIZES = ["INPUT.MIN_SIZE_TRAIN", "(133,197)"]


def ends(function, *arguments):
    """Call a function in a process that is killed if it does not end."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(60)
    code, _ = process.exitcode, process.kill()
    assert code == 0, "opened" if code is None else code


@pytest.fixture(params=KINDS)
def spoil(request):
    """spoil(path): put a pipe, or a link to a device, in place of a file."""

    def spoil(path):
        path.unlink(missing_ok=True)
        KINDS[request.param](path)

    return spoil


def pets(folder, *opts):
    return tiny_config(folder, "DATALOADER.ASPECT_RATIO_GROUPING", False, "TEST.EVAL_PERIOD", 0, *opts)


def test_as_a_training_image_it_is_one_that_cannot_be_read(tmp_path, spoil):
    def train():
        cfg = pets(tmp_path, "DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 1)
        bad = sorted((tmp_path / "pets").iterdir())[3]
        spoil(bad)
        trainer = RetinaTrainer(cfg)
        trainer.train()
        assert trainer.storage.latest()["unreadable_images"][0] == 1
        ((name, reason),) = trainer.data_loader.unreadable.state_dict().items()
        assert name == str(bad) and reason.startswith(f"FileError: {bad} is a ")

    ends(train)


@pytest.mark.parametrize("workers", [0, 1])
def test_as_a_test_image_it_ends_the_evaluation(tmp_path, spoil, workers):
    def evaluate():
        cfg = pets(tmp_path, "DATALOADER.NUM_WORKERS", workers)
        bad = sorted((tmp_path / "pets").iterdir())[3]
        spoil(bad)
        with pytest.raises(FileError) as error, explain_failures():
            list(RetinaTrainer.build_test_loader(cfg, "pets"))
        assert str(error.value).startswith(f"{bad} cannot be read (FileError: {bad} is a ")
        assert "\n" not in str(error.value)

    ends(evaluate)


def test_in_a_data_set_that_is_checked_or_drawn(tmp_path, seed, spoil, capfd):
    random_set = RandomSet(tmp_path, seed)
    random_set.write()
    bad = random_set.path(random_set.coco["images"][2])
    spoil(bad)
    where = ["check-data", "--json", str(random_set.json_file), "--images", str(random_set.image_root), *SIZES]

    def check(status, text, *words):
        assert main([*where, *words]) == status
        assert text in capfd.readouterr().out

    for words in ((), ("--headers-only",), ("--workers", "0")):
        ends(check, 1, "image-unreadable", *words)
    (tmp_path / "results.json").write_text("[]")

    def draw():
        register_coco_instances("drawn", {}, str(random_set.json_file), str(random_set.image_root))
        with pytest.raises(FileError, match=f"{bad.name} is a "):
            draw_grid("drawn", tmp_path / "results.json", tmp_path / "sheet.png", num_images=100)

    ends(draw)
    spoil(random_set.json_file)
    ends(check, 2, "json-invalid")


def test_as_the_json_of_a_registered_set(tmp_path, spoil):
    spoil(tmp_path / "set.json")
    name = f"special_{tmp_path.name}"
    register_coco_instances(name, {}, str(tmp_path / "set.json"), str(tmp_path))

    def check():
        with pytest.raises(ConfigError, match="is not on this machine: no .*set.json"):
            check_datasets([name])

    try:
        ends(check)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
