"""The best checkpoint and early stopping, in runs of Detectron2's loop, killed and resumed anywhere."""

import logging
import math

import numpy as np
import pytest
import torch

from retina_plugin import ConfigError

from .loop import Loop


def random_values(count=25):
    values = np.random.randint(0, 8, count).astype(float)
    values[np.random.rand(count) < 0.15] = math.nan
    return values.tolist()


def weight(folder, name):
    return torch.load(folder / f"{name}.pth", weights_only=True)["model"]["weight"].item()


def evaluated(values, period=2):
    """(iterations done, value) of every evaluation of a whole run."""
    last = len(values) - 1
    return [(done, values[done]) for done in sorted({*range(period, last, period), last})]


def expected_best(values):
    finite = [(value, -done) for done, value in evaluated(values) if math.isfinite(value)]
    return -max(finite)[1] if finite else None


def expected_stop(values, patience, min_delta):
    """Iterations done when patience ends, restated: the evaluations since the last real improvement."""
    reference, waited = -math.inf, 0
    for done, value in evaluated(values)[:-1]:
        better = math.isfinite(value) and (reference == -math.inf or value > reference + min_delta)
        reference, waited = (value, 0) if better else (reference, waited + 1)
        if waited == patience:
            return done
    return None


def test_the_best_file_has_the_weights_of_the_best_evaluation_and_is_not_the_last(tmp_path):
    for i in range(4):
        values = random_values(11)
        Loop(values, tmp_path / str(i)).run()
        best = expected_best(values)
        assert (tmp_path / str(i) / "last_checkpoint").read_text() == "model_final.pth"
        assert best is None or weight(tmp_path / str(i), "model_best") == best


def test_a_loss_is_best_when_it_is_lowest(tmp_path):
    Loop([9.0, 9.0, 3.0, 9.0, 2.0, 9.0, 4.0, 9.0, 8.0], tmp_path, mode="min").run()
    assert weight(tmp_path, "model_best") == 4


@pytest.mark.parametrize("min_delta", [0.0, 1.0])
def test_patience_ends_a_training_with_its_last_weights_saved(tmp_path, min_delta):
    for i in range(4):
        values, folder = random_values(), tmp_path / str(i)
        loop = Loop(values, folder, patience=2, min_delta=min_delta)
        ended, stop = loop.run(), expected_stop(values, 2, min_delta)
        assert ended == (stop is not None)
        assert loop.iter == loop.steps == (stop or 24)
        assert weight(folder, "model_final") == (stop or 24)
        assert (folder / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("checkpoint_period", [2, 3])
def test_a_run_killed_anywhere_and_resumed_is_the_uninterrupted_one(tmp_path, checkpoint_period):
    """Also where a checkpoint and an evaluation fall together: the first does not know of the second."""
    for killed_in in np.random.choice(24, 8, replace=False).tolist():
        values, folder = random_values(), tmp_path / str(killed_in)
        keys = {"patience": 3, "checkpoint_period": checkpoint_period}
        Loop(values, folder, killed_in=killed_in, **keys).run()
        resumed = Loop(values, folder, **keys)
        ended, stop = resumed.run(resume=True), expected_stop(values, 3, 0.0)
        assert ended == (stop is not None), values
        assert weight(folder, "model_final") == (stop or 24), values
        best = expected_best([math.nan if stop and i > stop else v for i, v in enumerate(values)])
        if best is not None:
            assert weight(folder, "model_best") == best, values


def test_a_longer_run_remembers_the_evaluation_after_the_last_checkpoint(tmp_path):
    values = [0.0, 0.0, 1.0, 0.0, 5.0, 0.0, 2.0, 0.0, 3.0]
    Loop(values[:5], tmp_path).run()
    longer = Loop(values, tmp_path)
    longer.run(resume=True)
    assert longer.steps == 4 and weight(tmp_path, "model_best") == 4 and longer.watched.best.value == 5.0


def test_resuming_a_run_that_was_ended_trains_nothing_and_says_so(tmp_path, caplog):
    values = [float(i == 2) for i in range(25)]
    with caplog.at_level(logging.INFO, logger="retina_plugin"):
        assert Loop(values, tmp_path, patience=3).run()
    assert (
        "Early stopping after iteration 7: bbox/AP has not become better by more than 0 in 3 evaluations" in caplog.text
    )
    before = (tmp_path / "model_final.pth").read_bytes()
    again = Loop(values, tmp_path, patience=3)
    with caplog.at_level(logging.WARNING, logger="retina_plugin"):
        assert again.run(resume=True)
    assert again.steps == 0 and (tmp_path / "model_final.pth").read_bytes() == before
    assert "This run is complete: early stopping ended it after iteration 7" in caplog.text


@pytest.mark.parametrize("patience, stop", [(5, 12), (0, 24)])
def test_more_patience_goes_on_where_less_has_ended(tmp_path, patience, stop):
    values = [float(i == 2) for i in range(25)]
    Loop(values, tmp_path, patience=3).run()
    longer = Loop(values, tmp_path, patience=patience)
    longer.run(resume=True)
    assert longer.start_iter == 8 and weight(tmp_path, "model_final") == stop


def test_another_metric_starts_anew(tmp_path, caplog):
    Loop([5.0] * 9, tmp_path).run()
    other = Loop([5.0] * 17, tmp_path, metric="bbox/AP-cat")
    with caplog.at_level(logging.WARNING, logger="retina_plugin"):
        other.run(resume=True)
    assert "was chosen by bbox/AP (max) and is now by bbox/AP-cat (max)" in caplog.text
    assert other.watched.best.state_dict() == {"value": 0.0, "iteration": 10}


def test_a_run_that_is_not_resumed_replaces_the_best_of_the_run_before(tmp_path):
    Loop([9.0] * 5, tmp_path).run()
    Loop([1.0] * 7, tmp_path).run()
    assert torch.load(tmp_path / "model_best.pth")["trainer"]["hooks"]["WatchedMetric"]["best"]["value"] == 1.0


def test_a_best_file_of_somebody_else_is_replaced(tmp_path, caplog):
    Loop([1.0] * 5, tmp_path).run()
    torch.save({"model": {"weight": torch.ones(1, 1)}}, tmp_path / "model_best.pth")
    with caplog.at_level(logging.WARNING, logger="retina_plugin"):
        Loop([2.0] * 7, tmp_path).run(resume=True)
    assert "does not tell how good it is" in caplog.text and weight(tmp_path, "model_best") == 6


def test_a_metric_that_no_evaluation_gives_is_an_error_at_the_first_that_names_those_there_are(tmp_path):
    loop = Loop([1.0] * 9, tmp_path, metric="bbox/AP5")
    with pytest.raises(ConfigError, match=r"'bbox/AP5', which no evaluation gives. Did you mean bbox/AP\?.*: bbox/AP$"):
        loop.run()
    assert loop.steps == 2 and not (tmp_path / "model_best.pth").exists()
