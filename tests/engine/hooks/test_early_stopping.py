"""Early stopping, in runs of the trainer, killed and resumed anywhere."""

import logging
import math

import numpy as np
import pytest

from .loop import Loop, evaluated, expected_best, random_values, weight


def expected_stop(values, patience, min_delta):
    """Iterations done when patience ends, restated: the evaluations since the last real improvement."""
    reference, waited = -math.inf, 0
    for done, value in evaluated(values)[:-1]:
        better = math.isfinite(value) and (reference == -math.inf or value > reference + min_delta)
        reference, waited = (value, 0) if better else (reference, waited + 1)
        if waited == patience:
            return done
    return None


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


def test_resuming_a_run_that_was_ended_trains_nothing_and_says_so(tmp_path, caplog):
    values = [float(i == 2) for i in range(25)]
    with caplog.at_level(logging.INFO, logger="retina_plugin"):
        assert Loop(values, tmp_path, patience=3).run()
    assert "Early stopping after iteration 7: bbox/AP has not improved by more than 0 in 3 evaluations" in caplog.text
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
