"""A full disk and what else a machine does to a job, with real files: a process may be given a limit for its files."""

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from retina_plugin.__main__ import main
from retina_plugin.core.errors import CheckpointError, FileError, MachineError
from retina_plugin.core.failures import explain_failure, explain_failures
from retina_plugin.core.files import atomic_write, atomic_write_text


@pytest.fixture
def file_limit():
    """Files of this process may have 4 KB; more is an error of the system, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", [
    lambda path: atomic_write_text(path, "x" * 5000),
    lambda path: atomic_write(path, lambda file: torch.save({"model": {"w": torch.zeros(5000)}}, file)),
    lambda path: atomic_write(path, lambda file: torch.save([0.0] * 5000, file, _use_new_zipfile_serialization=False)),
])  # fmt: skip
def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path, file_limit, write):
    path = tmp_path / "model_final.pth"
    path.write_text("old")
    with pytest.raises(MachineError) as error, explain_failures("Go on"):
        write(path)
    assert str(error.value) == (
        f"{path} cannot be written: File too large. Free space, or choose another folder. Go on"
    )
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["model_final.pth"]


def test_the_system_s_words_are_kept():
    for code, words in ((errno.ENOSPC, "No space left on device"), (errno.EDQUOT, "Disk quota exceeded")):
        assert f"out.json cannot be written: {words}. " in str(explain_failure(OSError(code, words, "out.json")))
    with pytest.raises(OSError) as error, open("/dev/full", "w") as file:
        file.write("x")
    assert str(explain_failure(error.value)).startswith("a file cannot be written: No space left on device.")
    assert explain_failure(FileNotFoundError(errno.ENOENT, "no", "x")) is None
    assert explain_failure(ValueError("a mistake in a program")) is None
    known = CheckpointError("of weights")
    assert explain_failure(known) is known


class Failing:
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


def test_an_error_for_the_user_in_a_data_loader_worker_stays_one_line():
    with pytest.raises(FileError) as error, explain_failures():
        list(DataLoader(Failing(FileError("a.jpg is a named pipe: FileError: no")), num_workers=1))
    assert str(error.value) == "a.jpg is a named pipe: FileError: no"
    with pytest.raises(ZeroDivisionError, match="Original Traceback"), explain_failures():
        list(DataLoader(Failing(ZeroDivisionError("a bug")), num_workers=1))


def test_commands_on_a_full_disk(tmp_path, file_limit, capsys):
    assert main(["plot-losses", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/figure1_focal_loss.png cannot be written: File too large. Free space, or choose another "
        "folder\n"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_command_whose_output_cannot_be_written(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "retina_plugin", "plot-losses", str(tmp_path)]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert (
        result.stderr
        == "error: a file cannot be written: No space left on device. Free space, or choose another folder\n"
    )
