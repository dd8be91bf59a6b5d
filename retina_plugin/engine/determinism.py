"""Runs that repeat to the last bit."""

import os

import torch


def make_deterministic():
    """Let torch choose operators whose results do not vary, and refuse those that it has none for.

    Before anything is computed on a GPU: cuBLAS reads its setting when it starts. With one SEED, two runs then give the
    same bits on machines with the same GPUs, number of processes, threads and library versions. Another number of
    threads or processes adds in another order. TF32 rounds, but always alike, and stays as it is.

    On a GPU, what this plugin computes has such operators: its kernels use no atomics (:mod:`..losses.kernels.gpu`),
    matching takes maxima, and the box loss picks nothing out. torch raises ``RuntimeError``, with the operator's name,
    for what a part of somebody else's lacks.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
