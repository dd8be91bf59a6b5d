"""A training whose data loader worker is killed, as the system does when memory ends, ends with a line."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from .test_train_net import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

LONG = ("SOLVER.MAX_ITER", 10**6, "SOLVER.CHECKPOINT_PERIOD", 1, "DATALOADER.NUM_WORKERS", 2)


def workers_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_the_training_ends_with_a_line_and_keeps_its_checkpoint(tiny_coco, request, tmp_path):
    words = ("--config-file", "configs/Base-RetinaNet.yaml", *SMALL, *LONG, "OUTPUT_DIR", tmp_path)
    process = subprocess.Popen(
        [sys.executable, "train_net.py", *map(str, words)],
        cwd=request.config.rootpath,
        env={**os.environ, "DETECTRON2_DATASETS": str(tiny_coco), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
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


def test_a_process_with_workers_ends_after_any_error(request):
    """The traceback keeps the loader, so that Python ends its workers itself, and waits for them."""
    code = (
        "from tests.data.test_workers import start\nloader = start()\nnext(loader)\n"
        "def fail(loader):\n    raise ValueError('a mistake in a program')\nfail(loader)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=request.config.rootpath, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1 and result.stderr.endswith("ValueError: a mistake in a program\n")
