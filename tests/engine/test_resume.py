"""What is said when a run is resumed, cannot be, or is another one; and its file of metrics."""

import json
import logging
import os
import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.utils.events import EventStorage

from retina_plugin.checkpoint import CheckpointError
from retina_plugin.engine import RetinaTrainer, train_net
from retina_plugin.engine.resume import metrics_state, restore_metrics
from retina_plugin.engine.writers import MetricsWriter

from .tiny import tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two iterations with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("run")
    trainer = RetinaTrainer(tiny_config(folder, *OPTS, "SOLVER.MAX_ITER", 2))
    trainer.train()
    yield folder
    DatasetCatalog.remove("pets")
    MetadataCatalog.remove("pets")


OPTS = ("SOLVER.CHECKPOINT_PERIOD", 1, "DATASETS.TEST", (), "SEED", 4)


@pytest.fixture
def resume(folder, caplog):
    """resume(*opts) -> the trainer, and what was said."""

    def run(*opts, last=None, trainer=RetinaTrainer):
        (folder / "out" / "last_checkpoint").write_text(last or "model_0000000.pth")
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="retina_plugin"):
            made = trainer(tiny_config(folder, *OPTS, *opts))
            made.resume_or_load(resume=True)
        return made, [r.getMessage() for r in caplog.records if r.name.startswith("retina_plugin.engine")]

    return run


def test_says_where_it_goes_on(resume, folder):
    trainer, said = resume("SOLVER.MAX_ITER", 2)
    assert trainer.start_iter == 1
    assert said == [f"Resumed from {folder}/out/model_0000000.pth at iteration 1 of 2."]


def test_says_that_there_is_nothing_to_resume(resume, tmp_path):
    trainer, said = resume("OUTPUT_DIR", str(tmp_path / "empty"))
    assert trainer.start_iter == 0
    assert said == [f"Nothing to resume in {tmp_path}/empty: training starts at iteration 0 from MODEL.WEIGHTS ''."]


def test_says_that_the_training_is_complete(resume, folder):
    trainer, said = resume("SOLVER.MAX_ITER", 2, last="model_final.pth")
    assert said[-2:] == [
        f"Resumed from {folder}/out/model_final.pth at iteration 2 of 2.",
        "The training is complete: nothing is left but its evaluation.",
    ]
    trainer.run_step = None  # would fail
    trainer.train()


def test_lists_what_is_not_as_it_was(resume):
    opts = ("SOLVER.BASE_LR", 0.5, "SEED", 5, "SOLVER.IMS_PER_BATCH", 1, "INPUT.MIN_SIZE_TRAIN", (40,))
    _, said = resume(*opts, "DATALOADER.NUM_WORKERS", 1, "TEST.DETECTIONS_PER_IMAGE", 7)
    assert said[0].splitlines() == [
        "The run goes on with another configuration than that of its checkpoint:",
        "  INPUT.MIN_SIZE_TRAIN: [32, 48] in the checkpoint, [40] now",
        "  SEED: 4 in the checkpoint, 5 now (the order of the data goes on as it was)",
        "  SOLVER.BASE_LR: 0.001 in the checkpoint, 0.5 now (the optimizer's settings in the checkpoint are used)",
        "  SOLVER.IMS_PER_BATCH: 2 in the checkpoint, 1 now",
        "  SOLVER.MAX_ITER: 2 in the checkpoint, 6 now",
    ]


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_last_checkpoint_that_cannot_be_used_names_the_newest_that_can(resume, folder, damage):
    bad = folder / "out" / "model_0000008.pth"
    if damage == "cut":
        bad.write_bytes((folder / "out" / "model_0000000.pth").read_bytes()[:5000])
    os.utime(folder / "out" / "model_0000001.pth")
    with pytest.raises(CheckpointError) as error:
        resume(last=bad.name)
    text = str(error.value)
    assert f"last_checkpoint of {folder}/out names a file that cannot be used: weights {bad}: " in text
    assert text.splitlines()[-2:] == [
        "The newest whole checkpoint there is model_0000001.pth, after 2 iterations. To resume from it:",
        f"  printf %s model_0000001.pth > {folder}/out/last_checkpoint",
    ]
    bad.unlink(missing_ok=True)
    assert resume(last="model_0000001.pth")[0].start_iter == 2


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(resume, folder, tmp_path):
    shutil.copy(folder / "out" / "model_0000001.pth", tmp_path / "model_best.pth")
    trainer, said = resume("OUTPUT_DIR", str(tmp_path))
    assert trainer.start_iter == 0
    assert said[0].startswith(f"Nothing to resume in {tmp_path}")


def test_checkpoints_that_nothing_names_are_not_started_over(resume, folder):
    config = tiny_config(folder, *OPTS)
    (folder / "out" / "last_checkpoint").unlink()
    trainer = RetinaTrainer(config)
    with pytest.raises(CheckpointError, match="no file last_checkpoint that names one\nThe newest"):
        trainer.resume_or_load(resume=True)


def test_a_trainer_with_a_loader_of_its_own_trains_and_says_that_the_order_starts_anew(resume):
    class Theirs(RetinaTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return build_detection_train_loader(cfg)

    trainer, said = resume("SOLVER.MAX_ITER", 2, trainer=Theirs)
    start = "The order of the training images starts anew: the data loader of this trainer does not keep it."
    assert said[0] == start and said[1].startswith("Resumed from ")
    trainer.train()
    assert trainer.iter == 2


def test_metrics_of_iterations_that_come_again_are_cut(tmp_path):
    """Also those of a process that was killed in the middle of a line, and evaluations after later iterations."""
    path = tmp_path / "metrics.json"
    lines = [{"iteration": i, "total_loss": i + 0.5} for i in (1, 3, 5)]
    lines += [{"iteration": 2, "bbox/AP": 1.0}, {"iteration": 4, "bbox/AP": 2.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 6, "tot')
    writer = MetricsWriter(path)
    writer.truncate(4)
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [1, 3, 2]
    with EventStorage(4) as storage:
        storage.iter = 2
        storage.put_scalar("bbox/AP", 1.0, smoothing_hint=False)  # restored, and in the file already
        storage.iter = 4
        storage.put_scalar("total_loss", 9.0)
        writer.write()
    writer.close()
    assert [json.loads(line) for line in path.read_text().splitlines()[3:]] == [{"iteration": 4, "total_loss": 9.0}]
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_the_past_of_metrics_is_restored_as_far_as_writers_look_back():
    past = EventStorage()
    for past.iter in range(30):
        past.put_scalar("total_loss", past.iter**2)
        if past.iter % 10 == 4:
            past.put_scalar("bbox/AP", past.iter, smoothing_hint=False)
    restored = EventStorage(30)
    restore_metrics(restored, metrics_state(past))
    assert restored.iter == 30 and restored.latest() == past.latest()
    assert restored.latest_with_smoothing_hint(20) == past.latest_with_smoothing_hint(20)


def test_the_newest_checkpoint_is_that_of_the_last_iteration_not_of_the_last_copy(resume, folder):
    """Files that were copied have other times, and those without a number in their name are read."""
    out = folder / "out"
    times = {"model_0000001.pth": 1, "model_final.pth": 2, "model_best.pth": 3, "model_0000000.pth": 4}
    shutil.copy(out / "model_0000000.pth", out / "model_best.pth")
    for name, time in times.items():
        os.utime(out / name, (time, time))
    message = "The newest whole checkpoint there is {}, after 2 iterations. To resume from it:"
    with pytest.raises(CheckpointError, match=message.format("model_0000001.pth")):
        resume(last="model_0000008.pth")
    (out / "model_0000001.pth").rename(out / "away")
    with pytest.raises(CheckpointError, match=message.format("model_final.pth")):
        resume(last="model_0000008.pth")
    (out / "away").rename(out / "model_0000001.pth")
    (out / "model_best.pth").unlink()


@pytest.mark.parametrize("kind", ["folder", "garbage", "gone", "elsewhere"])
def test_an_unusable_last_checkpoint_ends_the_command_before_anything_is_written(kind, folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    (out / "last_checkpoint").unlink()
    if kind == "folder":
        (out / "last_checkpoint").mkdir()
    else:
        content = {"garbage": b"\x00\xff\x1b[0m", "gone": b"model_0000009.pth", "elsewhere": b"../x/model_final.pth"}
        (out / "last_checkpoint").write_bytes(content[kind])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    config = tiny_config(folder, *OPTS, "OUTPUT_DIR", str(out))
    (tmp_path / "config.yaml").write_text(config.dump())
    with pytest.raises(SystemExit) as end:
        train_net.main(["--config-file", str(tmp_path / "config.yaml"), "--resume"])
    assert str(end.value.code).startswith("error: --resume: ")
    assert "The newest whole checkpoint there is model_0000001.pth, after 2 iterations" in str(end.value.code)
    assert ("first move" in str(end.value.code)) == (kind == "folder")
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "run.lock"}
    assert after == before
