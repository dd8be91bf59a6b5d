"""The best checkpoint, in runs of the trainer, killed and resumed anywhere."""

import logging

import pytest
import torch

from retina_plugin import ConfigError

from .loop import Loop, expected_best, random_values, weight


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


@pytest.mark.parametrize("period", [2, 3])
def test_a_longer_run_remembers_the_evaluation_after_the_last_checkpoint(tmp_path, period):
    """Also with period 3, for which the longer run has no evaluation after 4 iterations."""
    values = [0.0, 0.0, 1.0, 0.0, 5.0, 0.0, 2.0, 0.0, 3.0]
    Loop(values[:5], tmp_path, period=period).run()
    longer = Loop(values, tmp_path, period=period)
    longer.run(resume=True)
    assert longer.steps == 4 and weight(tmp_path, "model_best") == 4
    best = torch.load(tmp_path / "model_final.pth")["trainer"]["hooks"]["BestCheckpoint"]
    assert best == {"metric": "bbox/AP", "mode": "max", "value": 5.0, "iteration": 3}


def test_another_metric_starts_anew(tmp_path, caplog):
    Loop([5.0] * 9, tmp_path).run()
    other = Loop([5.0] * 17, tmp_path, metric="bbox/AP-cat")
    with caplog.at_level(logging.WARNING, logger="retina_plugin"):
        other.run(resume=True)
    assert "was chosen by bbox/AP (max) and is now chosen by bbox/AP-cat (max)" in caplog.text
    best = torch.load(tmp_path / "model_final.pth")["trainer"]["hooks"]["BestCheckpoint"]
    assert (best["value"], best["iteration"]) == (0.0, 7), "the evaluation after 8 iterations is the first of it"


def test_a_run_that_is_not_resumed_replaces_the_best_of_the_run_before(tmp_path):
    Loop([9.0] * 5, tmp_path).run()
    Loop([1.0] * 7, tmp_path).run()
    assert torch.load(tmp_path / "model_best.pth")["trainer"]["hooks"]["BestCheckpoint"]["value"] == 1.0


def test_a_metric_that_no_evaluation_gives_is_an_error_at_the_first_that_names_those_there_are(tmp_path):
    loop = Loop([1.0] * 9, tmp_path, metric="bbox/AP5")
    with pytest.raises(ConfigError, match=r"'bbox/AP5', which no evaluation gives. Did you mean bbox/AP\?.*: bbox/AP$"):
        loop.run()
    assert loop.steps == 2 and not (tmp_path / "model_best.pth").exists()
