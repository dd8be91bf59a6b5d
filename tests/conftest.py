"""Every test draws fresh random inputs. The seed is printed at the top; RETINA_TEST_SEED repeats a run."""

import os
import random
import signal
import tempfile
import zlib

import numpy as np
import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: its kernels run on the CPU, in numpy

import retina_plugin  # noqa: E402, F401  makes Detectron2 importable before a test imports it
from tests.warm_python import WarmPython  # noqa: E402

# Through the environment, so that all processes that share the tests (pytest -n) have the same.
SEED = int(os.environ.setdefault("RETINA_TEST_SEED", str(int.from_bytes(os.urandom(3), "big"))))

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # each its share of the cores, for the processes it starts as well
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores: many tests wait for processes that they have started."""
    return (os.cpu_count() or 1) + 1


def pytest_report_header():
    return f"random seed: {SEED} (repeat with RETINA_TEST_SEED={SEED})"


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """The folder for temporary files, of the tests and their processes: those that are killed leave files there."""
    tmp_path_factory.getbasetemp()  # of pytest, which stays where it is
    with (
        tempfile.TemporaryDirectory(prefix="retina_tests_", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session")
def python(request):
    """``python.run(*words)`` runs Python in a process of its own, as ``subprocess.run`` does, in a moment."""
    warm = WarmPython(request.config.rootpath)
    yield warm
    warm.close()


@pytest.fixture(autouse=True)
def seed(request):
    """Seeds the generators of torch, numpy and random, differently for each test; returns the test's seed."""
    value = (SEED + zlib.crc32(request.node.nodeid.encode())) % 2**32
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)
    return value
