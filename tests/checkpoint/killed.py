"""Saves checkpoints and is killed at a certain moment, in a process of its own for each; run by test_writing.py.

    python killed.py FOLDER MOMENT ...

In FOLDER/MOMENT, the checkpoint of iteration 1 is whole. That of iteration 2 is being written.
"""

import os
import signal
import sys

import torch
from torch import nn

from retina_plugin.checkpoint import RetinaCheckpointer


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """A file whose writer is killed as soon as ``limit`` bytes are on the disk."""

    def __init__(self, file, limit):
        self.file, self.limit, self.written = file, limit, 0

    def write(self, data):
        count = self.file.write(data)
        self.written += count
        if self.written > self.limit:
            self.file.flush()
            kill()
        return count

    def flush(self):
        self.file.flush()


def arm(moment, size):
    """Let this process be killed at ``"write FRACTION"``, ``"before replace N"`` or ``"after replace N"``."""
    when, _, number = moment.rpartition(" ")
    save, replace, count = torch.save, os.replace, 0

    def killing_save(data, file):
        save(data, Killer(file, float(number) * size))

    def killing_replace(*names):
        nonlocal count
        count += 1
        if when == "before replace" and count == int(number):
            kill()
        replace(*names)
        if when == "after replace" and count == int(number):
            kill()

    if when == "write":
        torch.save = killing_save
    else:
        os.replace = killing_replace


def main(folder, *moments):
    torch.set_num_threads(1)
    for moment in moments:
        for name in ("same", "other"):
            place = os.path.join(folder, f"{moment}, {name}")
            os.mkdir(place)
            model = nn.Linear(300, 200)
            checkpointer = RetinaCheckpointer(model, place)
            nn.init.constant_(model.weight, 1.0)
            checkpointer.save("model", iteration=1)
            process = os.fork()
            if process == 0:
                arm(moment, os.path.getsize(os.path.join(place, "model.pth")))
                nn.init.constant_(model.weight, 2.0)
                checkpointer.save("model" if name == "same" else "model_final", iteration=2)
                os._exit(3)
            _, status = os.waitpid(process, 0)
            print(f"{moment}, {name}: {os.WTERMSIG(status) if os.WIFSIGNALED(status) else 'not killed'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
