"""Starts Python processes in a moment: forked from an interpreter that has imported torch and run nothing.

Importing torch and torchvision takes seconds of CPU time, and many tests need a process of their own: for its exit
code, its signals, its environment or its output. ``python train_net.py`` in a test is ``python.run("train_net.py")``,
with the fixture of conftest.py. Only packages of others are imported beforehand (warm_server.py); each process imports
Detectron2 and this project itself, and ends as an interpreter ends. What is not as in ``subprocess.run``: the process
is no child of the test's, and ``PYTHONWARNINGS`` and other options of the interpreter have no effect.
"""

import contextlib
import json
import os
import pickle
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


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
            [sys.executable, str(Path(__file__).with_name("warm_server.py")), str(theirs.fileno())],
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
