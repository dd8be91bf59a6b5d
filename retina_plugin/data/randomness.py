"""Random numbers that follow from what they are for, and not from what was drawn before.

Training is repeated exactly, from any point and in any number of processes, because nothing has to remember the state
of a generator.
"""

import contextlib
import random

import numpy as np
import torch


def seed_all(*key):
    """Seed the generators of Python, numpy and torch, on all devices, with non-negative integers."""
    python, of_numpy, of_torch = _seeds(key)
    random.seed(python)
    np.random.seed(of_numpy)
    torch.manual_seed(of_torch)


@contextlib.contextmanager
def seeded(*key):
    """Seed the generators of the CPU with non-negative integers, and put their states back at the end."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    python, of_numpy, of_torch = _seeds(key)
    random.seed(python)
    np.random.seed(of_numpy)
    # torch.manual_seed would change the generators of GPUs, too, whose states cost a copy to keep.
    torch.default_generator.manual_seed(of_torch)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seeds(key):
    state = np.random.SeedSequence(key).generate_state(8)
    return int.from_bytes(state[:2].tobytes(), "little"), state[2:6], int.from_bytes(state[6:].tobytes(), "little")
