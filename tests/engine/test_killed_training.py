"""A training that is killed and resumed ends bit for bit as one that is not; see killed_training.py for more kills."""

from pathlib import Path

import pytest


def run(python, folder, *arguments):
    script = Path(__file__).with_name("killed_training.py")
    environment = {"PYTHONPATH": python.root, "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}
    result = python.run(script, folder, *arguments, timeout=600, **environment)
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{logs}"
    return result.stdout.splitlines()


@pytest.mark.slow
def test_losses_weights_state_and_metrics_are_those_of_an_uninterrupted_run(python, tmp_path, seed):
    """Flips, several scales, BN, precise BN, dropout; killed in a step, a checkpoint, an evaluation and after it."""
    moments = ("step 0 4", "write 0.6 5", "replace 1 5", "evaluation 3 8", "record 1 11")
    lines = run(python, tmp_path, "--seed", seed % 10**6, "--workers", 2, "--moments", *moments)
    assert lines[:5] == [
        "kill 1: trains, iteration 4",
        "kill 2: writes a checkpoint, iteration 5",
        "kill 3: writes a checkpoint, iteration 5",
        "kill 4: evaluates, iteration 8",
        "kill 5: trains, iteration 11",
    ]
    assert lines[5].endswith("differences: 0")


@pytest.mark.slow
def test_two_processes_are_resumed_exactly(python, tmp_path, seed):
    """Killed in a step, and stopped by a signal that only one of them gets."""
    moments = ("step 0 5", "signal 0 8")
    lines = run(python, tmp_path, "--seed", seed % 10**6, "--processes", 2, "--moments", *moments)
    assert lines[:2] == ["kill 1: trains, iteration 5", "kill 2: trains, iteration 8"]
    assert lines[2].endswith("differences: 0")
