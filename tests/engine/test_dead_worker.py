"""A training whose data loader worker is killed, as the system does when memory ends, ends with a line."""

import os
import signal
import sys

import pytest
import torch

from .test_train_net import CONFIG, SMALL

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

LONG = ("SOLVER.MAX_ITER", 10**6, "SOLVER.CHECKPOINT_PERIOD", 1, "DATALOADER.NUM_WORKERS", 2)


def workers_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_the_training_ends_with_a_line_and_keeps_its_checkpoint(tiny_coco, python, tmp_path):
    environment = {"DETECTRON2_DATASETS": tiny_coco, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": 1}
    process = python.start("train_net.py", *CONFIG, *SMALL, *LONG, "OUTPUT_DIR", tmp_path, **environment)
    for line in iter(process.readline, ""):
        if "model_0000002.pth" in line:  # which is being written
            worker = workers_of(process.pid)[0]
            os.kill(worker, signal.SIGKILL)
            break
    try:
        log, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1
    last = errors.splitlines()[-1]
    assert last.startswith("error: a data loader worker died: pid") and f" {worker} " in last
    assert "Traceback" not in log + errors and "Training stops: a data loader worker died" in log
    checkpoint = tmp_path / (tmp_path / "last_checkpoint").read_text()
    assert torch.load(checkpoint, weights_only=True)["iteration"] >= 1


def test_a_process_with_workers_ends_after_any_error(python):
    """The traceback keeps the loader, so that Python ends its workers itself, and waits for them."""
    code = (
        "from tests.data.test_workers import start\nloader = start()\nnext(loader)\n"
        "def fail(loader):\n    raise ValueError('a mistake in a program')\nfail(loader)"
    )
    result = python.run("-c", code, timeout=120)
    assert result.returncode == 1 and result.stderr.endswith("ValueError: a mistake in a program\n")
