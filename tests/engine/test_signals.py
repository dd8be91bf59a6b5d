"""Signals end a training with a checkpoint, at a safe point, and the handlers there were are put back."""

import json
import logging
import os
import signal

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import hooks

from retina_plugin.engine import EXIT_INTERRUPTED, RetinaTrainer, TrainingInterrupted

from .test_train_net import CONFIG, SMALL
from .tiny import tiny_config

DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@pytest.fixture
def make_trainer(tmp_path):
    """make_trainer(*opts) -> the trainer of a tiny run of six iterations, with an evaluation after three."""

    def make(*opts, resume=False):
        trainer = RetinaTrainer(tiny_config(tmp_path, *opts))
        trainer.resume_or_load(resume=resume)
        return trainer

    yield make
    DatasetCatalog.remove("pets")
    MetadataCatalog.remove("pets")


def send(trainer, iteration, *numbers):
    def before_step(trainer):
        if trainer.iter == iteration:
            for number in numbers:
                os.kill(os.getpid(), number)

    trainer.register_hooks([hooks.CallbackHook(before_step=before_step)])


def handlers():
    return {number: signal.getsignal(number) for number in DEFAULTS}


@pytest.mark.parametrize("number", DEFAULTS)
def test_a_signal_ends_the_iteration_and_leaves_a_checkpoint(make_trainer, tmp_path, number, caplog):
    assert handlers() == DEFAULTS
    trainer = make_trainer("SOLVER.CHECKPOINT_PERIOD", 100)
    send(trainer, 1, number)
    with pytest.raises(KeyboardInterrupt) as error, caplog.at_level(logging.WARNING):
        trainer.train()
    assert type(error.value) is TrainingInterrupted and handlers() == DEFAULTS
    name = signal.Signals(number).name
    assert f"{name}: stopped at iteration 2 of 6. The checkpoint is written; --resume goes on from it." in caplog.text
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000001.pth"
    assert make_trainer(resume=True).start_iter == 2


def test_an_evaluation_is_left_and_done_again_when_the_run_is_resumed(make_trainer, tmp_path):
    trainer = make_trainer("SOLVER.CHECKPOINT_PERIOD", 100)
    seen = []

    def count(model, images):
        if not model.training:
            seen.append(len(images))
            if len(seen) == 1:  # a second one would end this process
                os.kill(os.getpid(), signal.SIGTERM)

    trainer.model.register_forward_pre_hook(count)
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert 1 <= len(seen) <= 8 < len(DatasetCatalog.get("pets"))
    assert trainer.model.training and trainer.iter == 2
    evaluated = []
    resumed = make_trainer(resume=True)
    resumed.model.register_forward_pre_hook(lambda model, _: evaluated.append((resumed.iter, model.training)))
    resumed.train()
    assert resumed.start_iter == 3 and evaluated[:3] == [(2, False)] * 3 and (3, True) in evaluated
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert sorted(line["iteration"] for line in metrics if "bbox/AP" in line) == [2, 6]


def test_a_second_signal_ends_at_once(make_trainer, tmp_path):
    trainer = make_trainer()
    send(trainer, 1, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as error:
        trainer.train()
    assert type(error.value) is KeyboardInterrupt and handlers() == DEFAULTS
    assert not (tmp_path / "out" / "last_checkpoint").exists()


def test_in_the_last_iteration_only_the_evaluation_is_left_out(make_trainer, tmp_path):
    trainer = make_trainer("TEST.EVAL_PERIOD", 0)
    send(trainer, 5, signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match="The training is complete; --resume evaluates it"):
        trainer.train()
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"
    resumed = make_trainer("TEST.EVAL_PERIOD", 0, resume=True)
    before = {name: value.clone() for name, value in resumed.model.state_dict().items()}
    resumed.train()
    assert "bbox" in resumed._last_eval_results
    assert all(torch.equal(value, before[name]) for name, value in resumed.model.state_dict().items())


def test_a_handler_of_somebody_else_stays(make_trainer):
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("theirs"))
    try:
        trainer = make_trainer("TEST.EVAL_PERIOD", 0, "DATASETS.TEST", ())
        send(trainer, 1, signal.SIGTERM)
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == ["theirs"] and trainer.iter == 6


@pytest.mark.slow
def test_train_net_ends_with_a_code_of_its_own(tiny_coco, python, tmp_path):
    run = ("SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "1", "OUTPUT_DIR", str(tmp_path))
    opts = (*SMALL, *run, "DATALOADER.NUM_WORKERS", "1")
    environment = {"DETECTRON2_DATASETS": tiny_coco, "CUDA_VISIBLE_DEVICES": ""}
    process = python.start("train_net.py", *CONFIG, *opts, new_session=True, **environment)
    for line in iter(process.readline, ""):
        if "model_0000000.pth" in line:
            os.killpg(process.pid, signal.SIGTERM)  # with the process that reads images
            break
    log, errors = process.communicate()
    assert process.returncode == EXIT_INTERRUPTED == 75, errors
    assert "SIGTERM: stopping with a checkpoint after this iteration; again to end at once" in errors
    assert (tmp_path / "last_checkpoint").read_text() in log and "Traceback" not in log + errors
