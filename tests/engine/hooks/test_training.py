"""The trainer with everything that watches it: same weights, one more line, an end before the end."""

import json
import logging
import os
import re

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from retina_plugin.engine import RetinaTrainer
from retina_plugin.engine.determinism import make_deterministic

from .conftest import small_cfg


@pytest.fixture(autouse=True)
def log(caplog, monkeypatch):
    # Detectron2's logger keeps its records to itself once a trainer has set it up.
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, logger="detectron2"):
        yield


@pytest.fixture
def train(pets, config):
    def run(name, *opts, resume=False):
        seed_all_rng(5)
        trainer = RetinaTrainer(small_cfg(config, pets / name, "SOLVER.MAX_ITER", 4, *opts))
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return trainer

    return run


def weights(trainer):
    return torch.cat([value.flatten().float() for value in trainer.model.state_dict().values()])


@pytest.mark.slow
def test_a_training_that_is_watched_is_the_same_training(train, pets, caplog):
    plain = train("plain", "TEST.EVAL_PERIOD", 0)
    watching = ("TEST.VAL_LOSS_PERIOD", 1, "TEST.EVAL_PERIOD", 2, "LOG_PERIOD", 2, "VIS_PERIOD", 0)
    best = ("TEST.BEST_CHECKPOINT.METRIC", "validation/total_loss", "TEST.BEST_CHECKPOINT.MODE", "min")
    caplog.clear()
    watched = train("watched", *watching, *best, "TEST.EARLY_STOPPING.PATIENCE", 9)
    assert torch.equal(weights(watched), weights(plain))

    lines = [r.getMessage() for r in caplog.records if r.name.endswith(".utils.events")]  # a formatter may shorten it
    assert [re.search(r"iter: (\d+)  epoch: ([\d.]+)", line).groups() for line in lines] == [
        ("1", "0.80"),
        ("3", "1.60"),
    ]
    for part in (
        r"loss_cls: \d",
        r"lr: \d",
        r"positives: p3 [\d.]+, p4 .*, p7 [\d.]+  without boxes: \d+%  max_mem: \d+M",
    ):
        assert re.search(part, lines[1]), lines[1]
    assert re.search(r"images/s: \d", lines[1]) and "validation" not in lines[1]

    written = [json.loads(line) for line in (pets / "watched" / "metrics.json").read_text().splitlines()]
    at = {line["iteration"]: line for line in written}
    keys = {"epoch", "images_per_second", "images_without_boxes", "max_mem_mb", "num_pos_anchors_p3", "total_loss"}
    assert keys <= set(at[3]) and {"validation/loss_cls", "validation/loss_box_reg", "bbox/AP"} <= set(at[4])
    assert at[1]["validation/total_loss"] == pytest.approx(
        at[1]["validation/loss_cls"] + at[1]["validation/loss_box_reg"]
    )
    assert (pets / "watched" / "model_best.pth").exists() and not (pets / "plain" / "model_best.pth").exists()


@pytest.mark.slow
def test_a_training_ended_early_is_verified_and_not_resumed(train, pets, caplog):
    keys = ("SOLVER.MAX_ITER", 30, "TEST.EVAL_PERIOD", 1, "TEST.BEST_CHECKPOINT.METRIC", "bbox/AP")
    keys += ("TEST.EARLY_STOPPING.PATIENCE", 2, "TEST.EXPECTED_RESULTS", [["bbox", "AP", 0.0, 0.1]])
    train("ended", *keys)
    assert "Early stopping after iteration 2" in caplog.text and "Results verification passed." in caplog.text
    assert "Exception during training" not in caplog.text
    assert torch.load(pets / "ended" / "model_final.pth")["iteration"] == 2
    caplog.clear()
    train("ended", *keys, resume=True)
    assert "This run is complete: early stopping ended it after iteration 2" in caplog.text
    assert train("ended", *keys, "TEST.EARLY_STOPPING.PATIENCE", 4, resume=True).iter == 5


@pytest.fixture
def torch_settings():
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.deterministic = before[1]


def test_two_deterministic_runs_are_equal_to_the_last_bit(train, torch_settings, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    torch.backends.cudnn.benchmark = True
    make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    first, second = (train(name, "TEST.EVAL_PERIOD", 0, "SOLVER.MAX_ITER", 3) for name in ("a", "b"))
    assert torch.equal(weights(first), weights(second))
