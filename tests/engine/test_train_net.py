"""train_net.py as a user runs it: train, evaluate, resume, and what it says when it cannot."""

import json
import os
import subprocess
import sys

import pytest
import torch

SMALL = (
    *("MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.DEPTH", "18"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", "SEED", "3"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
)
CONFIG = ("--config-file", "configs/Base-RetinaNet.yaml")


@pytest.fixture(scope="module")
def train_net(tiny_coco, python):
    def run(*arguments, datasets=tiny_coco):
        words = ("train_net.py", *CONFIG, *arguments)
        result = python.run(*words, DETECTRON2_DATASETS=datasets, CUDA_VISIBLE_DEVICES="")
        return result.returncode, result.stdout, result.stderr

    return run


@pytest.fixture(scope="module")
def trained(tiny_coco, request, tmp_path_factory):
    """Output folder and log of four iterations, in an interpreter that starts as that of a user."""
    folder = tmp_path_factory.mktemp("output")
    result = subprocess.run(
        [sys.executable, "train_net.py", *CONFIG, *SMALL, "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(folder)],
        cwd=request.config.rootpath,
        env={**os.environ, "DETECTRON2_DATASETS": str(tiny_coco), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


@pytest.mark.slow
def test_trains_and_evaluates_on_the_cpu_and_says_so_once(trained):
    folder, log = trained
    assert log.count("There is no GPU here: running on the CPU") == 1
    assert "copypaste: AP,AP50,AP75,APs,APm,APl" in log
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    assert "total_loss" in json.loads((folder / "metrics.json").read_text().splitlines()[0])


@pytest.mark.slow
def test_checkpoint_holds_what_resuming_needs_and_no_pickled_code(trained):
    folder, _ = trained
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 3
    assert checkpoint["model"]["loss_normalizer.ema"] < 100
    momenta = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    assert any(state["momentum_buffer"].abs().sum() > 0 for state in momenta.values())


@pytest.mark.slow
def test_evaluation_alone_gives_the_same_detections(trained, train_net, tmp_path):
    folder, _ = trained
    code, log, errors = train_net(
        "--eval-only", *SMALL, "MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", tmp_path
    )
    assert code == 0, errors
    assert "Starting training" not in log and "copypaste: AP,AP50" in log
    results = [json.loads((d / "inference" / "coco_instances_results.json").read_text()) for d in (folder, tmp_path)]
    assert results[0] == results[1]


@pytest.mark.slow
def test_resumes_where_it_stopped(trained, train_net):
    folder, _ = trained
    code, log, errors = train_net("--resume", *SMALL, "SOLVER.MAX_ITER", 6, "OUTPUT_DIR", folder)
    assert code == 0, errors
    assert "Starting training from iteration 4" in log
    assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == 5


def test_a_user_without_gpus_and_without_coco_gets_a_line_each(train_net, tmp_path):
    code, log, errors = train_net("--num-gpus", 8, datasets=tmp_path)
    assert code == 1 and log == ""
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3 and "Traceback" not in errors
    assert lines[0].startswith("error: --num-gpus 8: torch ") and "sees 0 GPUs" in lines[0]
    assert "MODEL.DEVICE cpu runs 8 processes on the CPU" in lines[0]
    for line, name, year in zip(lines[1:], ("coco_2017_train", "coco_2017_val"), ("train2017", "val2017")):
        assert f"data set '{name}' is not on this machine: no {tmp_path}/coco/annotations/instances_{year}.json" in line


@pytest.mark.parametrize(
    "opts, part",
    [
        (("MODEL.RETINANET.LOSS_NORMALIZER", "positive"), "loss normalizer 'positive' is none of ema"),
        (("MODEL.RETINANET.IOU_THRESHOLDS", "[0.5, 0.4]"), "IOU_THRESHOLDS must increase"),
        (("MODEL.RESNETS.DEPTH", "18"), "RES2_OUT_CHANNELS = 64"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_before_anything_starts(train_net, tmp_path, opts, part):
    code, log, errors = train_net(*opts, "OUTPUT_DIR", tmp_path / "out")
    assert code == 1 and "Traceback" not in errors and not (tmp_path / "out").exists()
    assert errors.splitlines()[-1].startswith("error: the model cannot be built: ") and part in errors


def test_a_misspelt_key_is_refused_before_anything_starts(train_net, tmp_path):
    code, log, errors = train_net("SOLVER.BASE_LRR", "0.1", "OUTPUT_DIR", tmp_path / "out")
    assert code == 1 and "error: unknown key SOLVER.BASE_LRR" in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_training_that_diverges_ends_without_a_traceback(train_net, tmp_path):
    opts = ("SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_NONFINITE_STEPS", 1, "SOLVER.MAX_ITER", 20)
    code, log, errors = train_net(*SMALL, *opts, "SOLVER.CHECKPOINT_PERIOD", 1, "OUTPUT_DIR", tmp_path)
    assert code == 1 and "Traceback" not in log + errors
    assert "error: training diverged: losses, gradients or buffers of 2 steps" in errors
    assert f"\nlast good checkpoint: {tmp_path}/model_0000000.pth\n" in errors
    assert torch.load(tmp_path / "model_0000000.pth", weights_only=True)["iteration"] == 0
    assert log.count("was not applied") == 2 and "Training stops: training diverged: losses" in log


def test_weights_that_cannot_be_used_are_an_error_in_a_line(train_net, tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"cposix\nsystem\n(S'touch it_ran'\ntR.")
    arguments = ("OUTPUT_DIR", tmp_path / "out", "MODEL.WEIGHTS", tmp_path / "model.pkl")
    code, log, errors = train_net(*SMALL, *arguments)
    assert code == 1 and "Traceback" not in errors and "Starting training" not in log
    assert f"error: weights {tmp_path}/model.pkl: this file is unsafe: it names posix.system" in errors
    assert "MODEL.WEIGHTS_ALLOW_PICKLE True" in errors
