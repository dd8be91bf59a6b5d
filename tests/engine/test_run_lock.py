"""A folder has one run at a time: real processes hold the lock, are refused, and leave nothing when they are killed."""

import multiprocessing
import os
import signal
import time

import pytest

from retina_plugin import ConfigError
from retina_plugin.engine import argument_parser, prepare_output_dir
from retina_plugin.engine.run_lock import lock_output_dir

from .test_output_dir import cfg, fill  # noqa: F401  a fixture

forked = multiprocessing.get_context("fork")


@pytest.fixture
def hold():
    """hold(folder) -> a process that tries to lock the folder, and what it tells."""
    started = []

    def run(folder, fork=False):
        receiver, sender = forked.Pipe(duplex=False)
        process = forked.Process(target=lock_and_wait, args=(str(folder), sender, fork))
        process.start()
        sender.close()
        started.append(process)
        return process, receiver

    yield run
    for process in started:
        process.kill()
        process.join()


def lock_and_wait(folder, sender, fork):
    try:
        lock_output_dir(folder)
        sender.send("holds" if not fork or os.fork() else f"child {os.getpid()}")
    except ConfigError as error:
        sender.send(str(error))
    time.sleep(600)


def claim(cfg, *arguments):  # noqa: F811
    return prepare_output_dir(cfg, argument_parser().parse_args(arguments))


def test_of_processes_that_start_at_the_same_moment_one_gets_the_folder(hold, tmp_path):
    folder = tmp_path / "new" / "folder"
    processes = [hold(folder) for _ in range(5)]
    told = [receiver.recv() for _, receiver in processes]
    ((holder, _),) = (pair for pair, line in zip(processes, told) if line == "holds")
    assert sum(line.startswith(f"OUTPUT_DIR {folder} belongs to a run that is still running (") for line in told) == 4
    assert (folder / "run.lock").read_text().startswith(f"process {holder.pid} on ")


def test_a_live_run_is_neither_resumed_nor_moved_nor_joined(hold, cfg, tmp_path):  # noqa: F811
    fill(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    process, receiver = hold(tmp_path)
    assert receiver.recv() == "holds"
    before = sorted(os.listdir(tmp_path))
    for folder in (tmp_path, tmp_path / "link"):
        cfg.OUTPUT_DIR = str(folder)
        for arguments in ((), ("--resume",), ("--overwrite",)):
            with pytest.raises(ConfigError, match=rf"still running \(process {process.pid} on "):
                claim(cfg, *arguments)
    assert sorted(os.listdir(tmp_path)) == before
    claim(cfg, "--eval-only")
    machines = ("--num-machines", "2", "--dist-url", "tcp://host:1")
    claim(cfg, "--resume", *machines, "--machine-rank", "1")  # the first machine of the same job holds it
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with claim(cfg, "--resume"):
        assert (tmp_path / "run.lock").read_text().startswith(f"process {os.getpid()} on ")
    assert hold(tmp_path)[1].recv() == "holds"


def test_a_data_loader_worker_that_outlives_a_killed_run_does_not_hold_the_folder(hold, tmp_path):
    process, receiver = hold(tmp_path, fork=True)
    told = {receiver.recv() for _ in range(2)}
    (child,) = (int(line.split()[1]) for line in told - {"holds"})
    try:
        process.kill()
        process.join()
        os.kill(child, 0)  # it lives
        lock_output_dir(str(tmp_path)).close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_lock_is_held_without_a_reference_and_released_by_the_context_manager(hold, tmp_path):
    lock_output_dir(str(tmp_path / "a"))
    assert "still running" in hold(tmp_path / "a")[1].recv()
    with lock_output_dir(str(tmp_path / "b")):
        assert "still running" in hold(tmp_path / "b")[1].recv()
    assert hold(tmp_path / "b")[1].recv() == "holds"


def test_folders_that_cannot_be_locked(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="OUTPUT_DIR .*file.* cannot be written: (Not a directory|File exists)"):
        lock_output_dir(str(tmp_path / "file" / "out"))
    os.mkfifo(tmp_path / "run.lock")
    with pytest.raises(ConfigError, match="run.lock is a named pipe, not a file"):
        lock_output_dir(str(tmp_path))
    lock_output_dir("").close()
    monkeypatch.chdir(tmp_path)
    lock_output_dir("s3://bucket/run").close()
    assert sorted(os.listdir(tmp_path)) == ["file", "run.lock"]


@pytest.mark.parametrize("name", ["config.yaml", "log.txt", "metrics.json", "last_checkpoint", "run_state.json"])
@pytest.mark.parametrize("arguments", [(), ("--resume",), ("--eval-only",)])
def test_a_pipe_in_place_of_a_file_of_the_run_is_never_opened(cfg, tmp_path, name, arguments):  # noqa: F811
    os.mkfifo(tmp_path / name)
    process = forked.Process(target=refuse_pipe, args=(cfg, name, arguments))
    process.start()
    process.join(30)
    code, _ = process.exitcode, process.kill()
    assert code == 0


def refuse_pipe(cfg, name, arguments):  # noqa: F811
    with pytest.raises(ConfigError, match=f"{name} is a named pipe, not a file. Remove it"):
        claim(cfg, *arguments)
