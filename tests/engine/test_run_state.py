"""``run_state.json``: evaluations that a resumed run need not repeat."""

import json
import logging
import math

import numpy as np
import pytest

from retina_plugin.engine.run_state import RunState

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
