"""``run_state.json``: evaluations that a resumed run need not repeat."""

import json
import logging
import math

import numpy as np
import pytest
from detectron2.utils.events import EventStorage
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from retina_plugin.engine.run_state import RunState
from retina_plugin.engine.writers import MetricsWriter

from .hooks.loop import Loop, weight

VALUES = [0.0, 0.0, 3.0, 0.0, 5.0, 0.0, 4.0, 0.0, 1.0]


@pytest.mark.parametrize("checkpoint_period, repeated", [(2, [6, 8]), (3, [4, 6, 8])])
def test_an_evaluation_of_the_last_checkpoint_is_not_repeated(tmp_path, checkpoint_period, repeated):
    """Killed after the evaluation that follows 4 iterations, with the last checkpoint of 4 or of 3 iterations."""
    assert Loop(VALUES, tmp_path, checkpoint_period=checkpoint_period, killed_after=4).run() is None
    state = json.loads((tmp_path / "run_state.json").read_text())
    assert state["iteration"] == 3 and state["results"] == {"test": {"bbox": {"AP": 5.0, "AP-cat": 0.0}}}
    resumed = Loop(VALUES, tmp_path, checkpoint_period=checkpoint_period)
    resumed.run(resume=True)
    assert resumed.evaluated == repeated and weight(tmp_path, "model_best") == 4


@pytest.mark.parametrize("change", [{"min_delta": 1.0}, "state", "rollback"])
def test_results_of_another_configuration_or_training_are_not_used(tmp_path, change, caplog):
    Loop(VALUES, tmp_path, checkpoint_period=2, killed_after=6).run()
    if change == "rollback":
        (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    if change == "state":
        (tmp_path / "run_state.json").write_text('{"iteration": 5, "res')
    resumed = Loop(VALUES, tmp_path, checkpoint_period=2, **(change if isinstance(change, dict) else {}))
    with caplog.at_level(logging.WARNING, logger="retina_plugin"):
        resumed.run(resume=True)
    assert resumed.evaluated == ([2, 4, 6, 8] if change == "rollback" else [6, 8])
    assert ("run_state.json cannot be used" in caplog.text) == (change == "state")
    assert weight(tmp_path, "model_best") == 4


def test_a_new_run_in_the_folder_does_not_take_the_results_of_the_one_before(tmp_path):
    Loop(VALUES, tmp_path, checkpoint_period=2, killed_after=4).run()
    Loop(VALUES[::-1], tmp_path, checkpoint_period=2, killed_in=3).run()
    assert json.loads((tmp_path / "run_state.json").read_text())["best"]["value"] == 4.0


def test_a_complete_training_is_evaluated_again(tmp_path):
    Loop(VALUES, tmp_path).run()
    again = Loop(VALUES, tmp_path)
    again.run(resume=True)
    assert again.steps == 0 and again.evaluated == [8] and weight(tmp_path, "model_best") == 4


def test_results_come_back_to_the_last_bit(tmp_path):
    class Trainer:
        iter, max_iter = 7, 20

    results = {"bbox": {"AP": np.random.rand() * 100, "APs": math.nan, "AP50": np.float32(1 / 3)}}
    state = RunState(str(tmp_path), "A: 1\n")
    assert state.evaluate("test", Trainer, lambda: results) is results
    other = RunState(str(tmp_path), "A: 1\n")
    other.load()
    other.start(7)
    read = other.evaluate("test", Trainer, None)["bbox"]
    assert read["AP"] == results["bbox"]["AP"] and math.isnan(read["APs"]) and read["AP50"] == float(np.float32(1 / 3))


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = RunState("", "")
    state.load()
    state.record_best({"value": 1.0})
    assert not list(tmp_path.iterdir())


class Bucket(PathHandler):
    """Paths "bucket://NAME" for files of a folder, with what a remote store can do."""

    folder = None

    def _get_supported_prefixes(self):
        return ["bucket://"]

    def _local(self, path):
        return self.folder / path.removeprefix("bucket://")

    def _get_local_path(self, path, force=False, **kwargs):
        return str(self._local(path))

    def _open(self, path, mode="r", buffering=-1, **kwargs):
        return open(self._local(path), mode)

    def _exists(self, path, **kwargs):
        return self._local(path).exists()

    def _isfile(self, path, **kwargs):
        return self._local(path).is_file()

    def _isdir(self, path, **kwargs):
        return self._local(path).is_dir()

    def _ls(self, path, **kwargs):
        return [path.name for path in self._local(path).iterdir()]

    def _mkdirs(self, path, **kwargs):
        self._local(path).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def bucket(tmp_path):
    handler = Bucket()
    handler.folder = tmp_path
    PathManager.register_handler(handler, allow_override=True)
    return tmp_path


def test_a_run_in_a_remote_folder_is_resumed(bucket):
    Loop(VALUES, "bucket://run", checkpoint_period=2, killed_after=4).run()
    resumed = Loop(VALUES, "bucket://run", checkpoint_period=2)
    resumed.run(resume=True)
    assert resumed.start_iter == 4 and resumed.evaluated == [6, 8]
    assert weight(bucket / "run", "model_best") == 4 and weight(bucket / "run", "model_final") == 8


def test_a_remote_file_of_metrics_is_truncated_and_continued(bucket):
    path = bucket / "metrics.json"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"itera')
    writer = MetricsWriter("bucket://metrics.json")
    writer.truncate(2)
    with EventStorage(2) as storage:
        storage.put_scalar("total_loss", 1.5)
        writer.write()
    writer.close()
    assert list(map(json.loads, path.read_text().splitlines())) == [
        {"iteration": 1},
        {"iteration": 2, "total_loss": 1.5},
    ]
