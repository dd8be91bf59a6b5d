"""Bitwise reproducible runs."""

import os

import torch


def make_deterministic() -> None:
    """Make torch use deterministic operators, and raise ``RuntimeError`` for those that have no such implementation.

    Call before any computation on a GPU: cuBLAS reads its setting when it starts. With one SEED, two runs give the
    same bits if GPUs, number of processes, threads and library versions are the same. Other numbers of threads or
    processes change the order of sums. TF32 is deterministic and stays as it is.

    All GPU operators of this plugin are deterministic: the kernels of ``losses/fused`` use no atomics, matching takes
    maxima, and the box loss does not gather.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
