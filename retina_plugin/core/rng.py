"""Random state: generators seeded by what the numbers are for, and their state saved and restored.

Training repeats exactly from any iteration and with any number of ranks because no generator has to be carried along.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed the generators of Python, numpy and torch, on all devices, with non-negative integers."""
    python, for_numpy, for_torch = _seeds(key)
    random.seed(python)
    np.random.seed(for_numpy)
    torch.manual_seed(for_torch)


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the CPU generators with non-negative integers, and restore their state at the end."""
    with preserve_random_state():
        python, for_numpy, for_torch = _seeds(key)
        random.seed(python)
        np.random.seed(for_numpy)
        # torch.manual_seed would change the generators of GPUs, too, whose state costs a copy to keep.
        torch.default_generator.manual_seed(for_torch)
        yield


@contextlib.contextmanager
def preserve_random_state(include_gpu: bool = False) -> Iterator[None]:
    """Restore the state of the generators of Python, numpy and torch at the end.

    Args:
        include_gpu: also the state of this process's GPU, where one is in use.
    """
    python, of_numpy = random.getstate(), np.random.get_state()
    of_torch = torch_random_state() if include_gpu else {"cpu": torch.get_rng_state()}
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)
        set_torch_random_state(of_torch)


def torch_random_state() -> dict[str, torch.Tensor]:
    """State of torch's generators on the CPU and, where one is in use, on this process's GPU: uint8 tensors."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_torch_random_state(state: dict[str, torch.Tensor]) -> None:
    """Set what :func:`torch_random_state` returned. The state of a GPU is ignored on a machine without one."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _seeds(key: tuple[int, ...]) -> tuple[int, np.ndarray, int]:
    state = np.random.SeedSequence(key).generate_state(8)
    return int.from_bytes(state[:2].tobytes(), "little"), state[2:6], int.from_bytes(state[6:].tobytes(), "little")
