"""Where the machines of a job find each other, with an error that one can read when one does not come.

Each machine's first process (the parent of its workers) comes here before it starts any worker. The meeting
point is a key-value store at ``--dist-url``, held by machine 0. It stays open to the end: the workers meet in it
as well, and a machine whose worker fails tells the others. Where a launcher other than torchrun has started all
processes, they come here themselves (torchrun's agents meet in a store of their own).
"""

import contextlib
import os
import socket
import threading
import time
from datetime import timedelta
from urllib.parse import urlsplit

from torch import distributed as dist

from retina_plugin.core.errors import LaunchError

_POLL_SECONDS = 0.5
_LEAVE_SECONDS = 60.0
_WHAT_TO_CHECK = {
    "machine": (
        "Check that the command was started on every machine, each with its own --machine-rank; that --dist-url is "
        "the same everywhere and names machine 0; and that no firewall closes its port"
    ),
    "rank": (
        "Check that every process was started, each with its own RANK; that MASTER_ADDR and MASTER_PORT are the same "
        "everywhere and name the machine of rank 0; and that no firewall closes the port"
    ),
}


class Meeting:
    """The members of a job, all of whom have come.

    Args:
        what: "machine" or "rank".
        index: number of this one.
        count: how many there are.
        job: words that must be the same for all.
        url: tcp://HOST:PORT, which number 0 opens; port 0 is any that is free.
        timeout: seconds to wait for the others.

    Raises:
        LaunchError: another one did not come, or was started for another job.
    """

    def __init__(self, what, index, count, job, url, timeout):
        self._what, self._index, self._count, self._timeout = what, index, count, timeout
        self._deadline = time.monotonic() + timeout
        self._lock = threading.Lock()  # the watch is a thread of its own
        address = urlsplit(url)
        self._store = self._open(address.hostname, address.port)
        self._host = address.netloc.rpartition(":")[0]
        self.url = f"tcp://{self._host}:{self._store.port}"
        self._wait_for_all()
        self._compare(job)

    def _open(self, host, port):
        first = self._index == 0
        if not first:
            self._wait_for_first(host, port)
        try:
            return dist.TCPStore(host, port, is_master=first, timeout=timedelta(seconds=60), wait_for_workers=False)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise LaunchError(
                f"cannot open port {port} of this machine, where the other processes would come: {reason}. Choose "
                "another port; with one machine, leave --dist-url out"
                if first
                else f"what answers at tcp://{host}:{port} is not {self._what} 0 of this job: {reason}"
            ) from None

    def _wait_for_first(self, host, port):
        # torch waits as well, but prints a stack of its own at each attempt.
        while True:
            try:
                socket.create_connection((host, port), timeout=max(self._left(), 0.1)).close()
                return
            except (OSError, OverflowError) as error:
                if self._left() <= 0:
                    raise LaunchError(
                        f"waited {self._timeout:g} s for {self._what} 0, and nobody answers at tcp://{host}:{port} "
                        f"({error}). {self._advice()}"
                    ) from None
            time.sleep(_POLL_SECONDS)

    def _left(self):
        return self._deadline - time.monotonic()

    def _wait_for_all(self):
        if self._store.add(f"came/{self._index}", 1) > 1:
            raise LaunchError(
                f"two came to {self.url} as {self._what} {self._index}. Each needs a number of its own, from 0 to "
                f"{self._count - 1}"
            )
        missing = [i for i in range(self._count) if i != self._index]
        while missing := [i for i in missing if not self._store.check([f"came/{i}"])]:
            if self._left() <= 0:
                raise LaunchError(
                    f"waited {self._timeout:g} s at {self.url} for {self._count} {self._what}s: "
                    f"{self._count - len(missing)} came. Missing: {self._what} {', '.join(map(str, missing))}. "
                    f"{self._advice()}"
                )
            time.sleep(_POLL_SECONDS)

    def _compare(self, job):
        self._store.set(f"job/{self._index}", job)
        for other in range(self._count):
            theirs = self._store.get(f"job/{other}").decode()
            if theirs != job:
                raise LaunchError(
                    f"{self._what} {other} was started with {theirs}, this one ({self._what} {self._index}) with "
                    f"{job}. All of a job need the same"
                )

    def _advice(self):
        return f"{_WHAT_TO_CHECK[self._what]}. --dist-timeout SECONDS changes how long to wait"

    def for_workers(self):
        """The environment in which workers meet in this store, instead of opening one of their own.

        It is torchrun's way to tell its workers the same.
        """
        return environment(
            TORCHELASTIC_USE_AGENT_STORE="True", MASTER_ADDR=self._host, MASTER_PORT=str(self._store.port)
        )

    @contextlib.contextmanager
    def watch(self, when_another_fails):
        """Call a function with the reason, in a thread, as soon as another one has failed or is gone."""
        if self._count == 1:
            yield
            return
        over = threading.Event()

        def look():
            while not over.wait(_POLL_SECONDS):
                reason = self._failure()
                if reason:
                    when_another_fails(reason)
                    return

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _failure(self):
        try:
            with self._lock:
                return self._store.get("failed").decode() if self._store.check(["failed"]) else None
        except RuntimeError:
            return f"{self._what} 0 is gone: its connection broke"

    def tell_failure(self, reason):
        """Tell the others why this one ends."""
        with self._lock, contextlib.suppress(RuntimeError):
            self._store.set("failed", f"{self._what} {self._index} failed: {reason}")
        self.leave()

    def leave(self):
        """End the part of this one. Number 0 waits for the others, who would miss the store."""
        with self._lock, contextlib.suppress(RuntimeError):
            self._store.set(f"left/{self._index}", "")
            if self._index == 0 and self._count > 1:
                self._store.wait([f"left/{i}" for i in range(1, self._count)], timedelta(seconds=_LEAVE_SECONDS))


@contextlib.contextmanager
def environment(**variables):
    """Environment variables as the processes see them that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
