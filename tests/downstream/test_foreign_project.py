"""A project of somebody else, installed by pip, trains; its runs are resumed, replayed, checked and drawn."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retina_plugin import model_zoo

PACKAGE = Path(__file__).parent / "package"
MODULE = "foreign_project.config"
CONFIG = """
_BASE_: {base}
MODEL:
  WEIGHTS: ""
  DEVICE: cpu
  BACKBONE: {{FREEZE_AT: 0}}
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: BN}}
  FPN: {{OUT_CHANNELS: 16}}
  ANCHOR_GENERATOR: {{SIZES: [[12], [24], [48], [96], [192]], ASPECT_RATIOS: [[1.0]]}}
  RETINANET:
    NUM_CLASSES: 2
    HEAD_NAME: ForeignHead
    ASSIGNER: foreign_iou
    CLS_LOSS: foreign_soft
    BOX_CODER: foreign_corners
    BBOX_REG_LOSS_TYPE: foreign_l1
    FOREIGN_IOU: 0.3
    SCORE_THRESH_TEST: 0.0
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
DATALOADER: {{NUM_WORKERS: 0}}
DATASETS: {{TRAIN: [foreign_squares], TEST: [foreign_squares]}}
SOLVER: {{IMS_PER_BATCH: 4, ACCUMULATE_STEPS: 2, BASE_LR: 0.01, WARMUP_ITERS: 0}}
LOG_PERIOD: 1
SEED: 1
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, python):
    """run(*arguments) -> output of Python in a folder outside of the checkout, with the package installed."""
    folder = tmp_path_factory.mktemp("foreign")
    shutil.copytree(PACKAGE, folder / "source")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "installed", folder / "source"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    shutil.copy(PACKAGE / "train_net.py", folder)
    (folder / "data").mkdir()
    (folder / "foreign.yaml").write_text(CONFIG.format(base=model_zoo.get_config_file("Base-RetinaNet")))
    environment = {"PYTHONPATH": str(folder / "installed"), "FOREIGN_PROJECT_DATA": str(folder / "data")}

    def run(*arguments):
        done = python.run(*arguments, cwd=folder, CUDA_VISIBLE_DEVICES="", **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def trained(run):
    """Output of three iterations of the project's own train_net.py, which writes to the folder "run"."""
    overrides = ("SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 2, "OUTPUT_DIR", "run")
    return run("train_net.py", "--config-file", "foreign.yaml", *overrides)


@pytest.mark.slow
def test_trains_with_its_own_parts_and_records_its_module(run, trained):
    assert "ForeignTrainer trains" in trained
    code = "import json; from retina_plugin.config import read_config; cfg = read_config('run/config.yaml');"
    code += "print(json.dumps([cfg.IMPORTS, cfg.MODEL.RETINANET.FOREIGN_IOU]))"
    assert json.loads(run("-c", code).splitlines()[0]) == [[MODULE], 0.3]
    keys = "import torch; print(*torch.load('run/model_final.pth', weights_only=True)['model'])"
    assert "head.predict.weight" in run("-c", keys)


@pytest.mark.slow
def test_resumes_with_the_module_named_on_the_command_line(run, trained):
    arguments = ("--import", MODULE, "--config-file", "run/config.yaml", "--resume", "SOLVER.MAX_ITER", 5)
    resumed = run("-m", "retina_plugin", "train", *arguments)
    assert "at iteration 3 of 5" in resumed and "no optimizer state" not in resumed


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_replayed_from_its_file_alone(run):
    overrides = ("SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 1e30, "OUTPUT_DIR", "diverged")
    run("-m", "retina_plugin", "train", "--import", "foreign_project", "--config-file", "foreign.yaml", *overrides)
    files = run("-c", "import glob; print(*sorted(glob.glob('diverged/divergence/*.pth')))").split()
    out = run("-m", "retina_plugin", "replay", files[0], "--device", "cpu")
    assert "The result is not finite, as in the training." in out and re.search(r"Now: loss_cls \S+, loss_box_reg", out)


@pytest.mark.slow
def test_its_data_set_is_checked_and_drawn_with_the_folder_of_the_run_alone(run, trained):
    out = run("-m", "retina_plugin", "check-data", "foreign_squares", "--config-file", "run/config.yaml")
    assert "foreign_squares: 8 images, 8 annotations, 2 categories" in out
    assert "contact_sheet.png" in run("-m", "retina_plugin", "visualize", "run")


def test_its_parts_compute_what_they_say(run):
    """The box coder gives back the boxes that it encoded, and labels of the assigner are those of the IoU."""
    code = """
import torch, foreign_project
from detectron2.structures import Boxes, Instances
from foreign_project.parts import CornerCoder, IouAssigner
anchors = torch.tensor([[0., 0, 10, 20], [0, 0, 10, 10], [50, 50, 60, 60]])
boxes = torch.tensor([[1., 2, 13, 14]]).expand(3, 4)
deltas = CornerCoder().encode(boxes, anchors)
print(deltas[0].tolist(), torch.allclose(CornerCoder().decode(deltas, anchors), boxes))
instances = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[0., 0, 10, 12]])), gt_classes=torch.tensor([1]))
targets = IouAssigner(0.7, 2)([Boxes(anchors)], [instances])
print(targets.labels.tolist(), [round(x, 4) for x in targets.scores[0].tolist()])
"""
    lines = run("-c", code).splitlines()
    numbers = torch.tensor(json.loads(lines[-2].rpartition(" ")[0]))
    assert torch.allclose(numbers, torch.tensor([0.1, 0.1, 0.3, -0.3])) and lines[-2].endswith("True")
    assert lines[-1] == "[[2, 1, 2]] [0.6, 0.8333, 0.0]"
