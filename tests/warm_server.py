"""The interpreter that warm_python.py starts: imports torch, runs nothing, and forks a process for each request."""

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import types
import warnings
from pathlib import Path

PRELOADED = (
    *("numpy", "torch", "torch.distributed", "torch._dynamo", "torch.utils.data", "torch.utils.tensorboard"),
    *("torchvision", "torchvision.ops", "omegaconf", "pycocotools.cocoeval", "PIL.Image", "matplotlib.pyplot"),
    *("tabulate", "termcolor", "cloudpickle"),
)


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
