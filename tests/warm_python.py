"""Starts Python processes in a moment: forked from an interpreter that has imported torch and run nothing.

Importing torch and torchvision takes seconds of CPU time, and many tests need a process of their own: for its exit
code, its signals, its environment or its output. ``python train_net.py`` in a test is ``python.run("train_net.py")``,
with the fixture of conftest.py. Only packages of others are imported beforehand (``PRELOADED``); each process imports
Detectron2 and this project itself, and ends as an interpreter ends. What is not as in ``subprocess.run``: the process
is no child of the test's, and ``PYTHONWARNINGS`` and other options of the interpreter have no effect.
"""

import contextlib
import gc
import importlib
import json
import os
import pickle
import queue
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path

PRELOADED = (
    *("numpy", "torch", "torch.distributed", "torch._dynamo", "torch.utils.data", "torch.utils.tensorboard"),
    *("torchvision", "torchvision.ops", "omegaconf", "pycocotools.cocoeval", "PIL.Image", "matplotlib.pyplot"),
    *("tabulate", "termcolor", "cloudpickle"),
)


class WarmPython:
    """The interpreter from which processes are forked. It starts with the first of them."""

    def __init__(self, root: Path):
        self.root = root
        self._control: socket.socket | None = None
        self._server: subprocess.Popen | None = None

    def run(self, *words, cwd=None, timeout=300, **environment) -> subprocess.CompletedProcess:
        """Run ``python *words`` to its end. See :meth:`start`."""
        process = self.start(*words, cwd=cwd, **environment)
        try:
            stdout, stderr = process.communicate(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def start(self, *words, cwd=None, new_session=False, **environment) -> "WarmProcess":
        """Start ``python *words``: a script, ``-m MODULE`` or ``-c CODE``, and its arguments.

        Args:
            words: converted to text.
            cwd: its folder; by default the root of the repository.
            new_session: whether it leads a process group of its own.
            environment: variables that differ from those of the test; None removes one.
        """
        if self._control is None:
            self._control = self._start_server()
        args = [str(word) for word in words]
        variables = {**os.environ, **{name: value and str(value) for name, value in environment.items()}}
        request = {
            "words": args,
            "cwd": str(cwd or self.root),
            "environment": {name: value for name, value in variables.items() if value is not None},
            "new_session": new_session,
        }
        return WarmProcess(args, self._control, json.dumps(request))

    def spawn(self, function: Callable, args: tuple, nprocs: int) -> None:
        """Call ``function(rank, *args)`` in ``nprocs`` processes, as ``torch.multiprocessing.spawn`` does.

        Raises:
            AssertionError: one of them failed, and the others were ended; with its errors.
        """
        call = f"function, args = pickle.loads({pickle.dumps((function, args))!r})"
        code = f"import pickle, sys, retina_plugin\n{call}\nfunction(int(sys.argv[1]), *args)"
        processes = [self.start("-c", code, rank, PYTHONPATH=self.root) for rank in range(nprocs)]
        try:
            while None in (ends := [process.poll() for process in processes]) and not any(ends):
                time.sleep(0.01)
        finally:
            for process in processes:
                process.kill()
        for process in sorted(processes, key=lambda process: process.returncode, reverse=True):  # killed ones last
            assert process.returncode == 0, process.communicate()[1]

    def close(self) -> None:
        if self._server is not None:
            self._control.close()
            self._server.wait()

    def _start_server(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            cwd=self.root,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C ends the tests, which end it
        )
        theirs.close()
        return ours


class WarmProcess:
    """A process, with what the tests use of ``subprocess.Popen``."""

    def __init__(self, args: list[str], control: socket.socket, request: str):
        self.args, self.returncode = args, None
        (output, errors, self._status, requested), ends = zip(*(os.pipe() for _ in range(4)))
        socket.send_fds(control, [b"."], [*ends[:3], requested])
        for end in (*ends[:3], requested):
            os.close(end)
        with open(ends[3], "w") as file:
            file.write(request)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=drain, args=(output, self._lines.put), daemon=True),
            threading.Thread(target=drain, args=(errors, self._errors.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.pid = int(self._told(None))

    def readline(self) -> str:
        """Wait for the next line of standard output; an empty text at its end."""
        return self._lines.get()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(int(self._told(timeout)))
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end. Returns the rest of standard output, and all that it wrote to standard error."""
        self.wait(timeout)
        for reader in self._readers:
            reader.join()
        return "".join(iter(self.readline, "")), "".join(self._errors)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it unless it has ended, and wait."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def _told(self, timeout: float | None) -> bytes:
        """What the interpreter tells next: the number of the process, later how it ended."""
        if not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._status, 1)
            assert byte, "the interpreter from which processes are forked has died"
            line += byte
        return line


def drain(end: int, take: Callable[[str], object]) -> None:
    """Give every line of a pipe to ``take``, and an empty text at the end."""
    with open(end, newline="") as file:
        for line in file:
            take(line)
    take("")


def serve(control: socket.socket) -> dict | None:
    """Fork a process for each request until there is none. Returns the request in the process that it is for.

    With a request come four ends of pipes: for standard output and error, for what :func:`tell` writes, and one to read
    the request from.
    """
    ended, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    running: dict[int, int] = {}  # the number of a process, and where to tell its end
    while True:
        ready = select.select([control, ended], [], [])[0]
        if ended in ready:
            ended.recv(1024)
            for pid in list(running):
                if (end := os.waitpid(pid, os.WNOHANG))[0]:
                    tell(running[pid], end[1])
                    os.close(running.pop(pid))
        if control in ready:
            _, files, _, _ = socket.recv_fds(control, 1, 4)
            if not files:
                return None
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.dup2(files[0], 1)
                os.dup2(files[1], 2)
                for number in (*files[:3], *running.values(), control.detach(), ended.detach(), wake.detach()):
                    os.close(number)
                with open(files[3]) as request:
                    return json.load(request)
            for number in (files[0], files[1], files[3]):
                os.close(number)
            running[pid] = files[2]
            tell(files[2], pid)


def tell(file: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it
        os.write(file, f"{number}\n".encode())


def become(words: list[str], cwd: str, environment: dict[str, str], new_session: bool, path: list[str]) -> None:
    """Run ``python *words`` in this process."""
    if new_session:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    own_path = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.modules["torch"].set_num_threads(int(environment.get("OMP_NUM_THREADS") or os.cpu_count()))
    first, *words = words
    if first in ("-m", "-c"):
        what, *words = words
        sys.path[:] = [cwd if first == "-m" else "", *own_path, *path]
        sys.argv[:] = [first, *words]
        if first == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(what, main.__dict__)
    else:
        script = Path(cwd, first)
        sys.path[:] = [str(script.parent), *own_path, *path]
        sys.argv[:] = [first, *words]
        runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    show, warnings.showwarning = warnings.showwarning, lambda *_, **__: None  # once, not in every process
    for name in PRELOADED:
        importlib.import_module(name)
    warnings.showwarning = show
    gc.freeze()  # collections of the processes leave these pages alone, which they share
    if (job := serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        become(**job, path=sys.path[1:])
