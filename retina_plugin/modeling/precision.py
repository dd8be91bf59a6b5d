"""Half precision by name: what ``TEST.PRECISION`` and ``SOLVER.AMP.PRECISION`` mean."""

import contextlib
import functools
import logging

import torch

# None: everything stays in the precision of the weights.
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TRAINING_PRECISIONS = ("fp16", "bf16")  # of SOLVER.AMP, beside its absence


def check_precision(precision):
    """Raise ``ValueError`` for a precision that is no name in PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision '{precision}' is none of {', '.join(PRECISIONS)}")


def autocast(device_type, precision):
    """A context in which convolutions compute in ``precision``; weights keep theirs.

    Args:
        device_type: "cuda", "cpu": where the tensors are.
        precision: a name in PRECISIONS. With "fp32" the context changes nothing, so that a caller's own
            ``torch.autocast`` holds.

    Raises:
        ValueError: unknown precision.
    """
    check_precision(precision)
    dtype = PRECISIONS[precision]
    if dtype is None:
        return contextlib.nullcontext()
    if device_type == "cpu":
        _warn_of_slow_cpu(precision)
    return torch.autocast(device_type, dtype)


@functools.cache  # once
def _warn_of_slow_cpu(precision):
    if not _cpu_has_convolutions(precision):
        logging.getLogger(__name__).warning(
            "This CPU has no instructions for convolutions in %s: they take many times as long as in fp32.", precision
        )


def _cpu_has_convolutions(precision):
    ask = getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", None)
    return ask is None or ask()  # a torch that cannot tell gets no warning
