"""The precisions of ``TEST.PRECISION`` and ``SOLVER.AMP.PRECISION``."""

import contextlib
import functools
import logging

import torch

from retina_plugin.config.defaults import PRECISIONS

# The dtype for autocast; None keeps the precision of the weights.
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> None:
    """Raise ``ValueError`` unless ``precision`` is a name in PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision '{precision}' is none of {', '.join(PRECISIONS)}")


def autocast(device_type: str, precision: str) -> contextlib.AbstractContextManager[object]:
    """Create a context in which convolutions compute in ``precision``; weights keep their dtype.

    Args:
        device_type: device of the tensors, such as "cuda" or "cpu".
        precision: a name in PRECISIONS. "fp32" changes nothing, not even a caller's own ``torch.autocast``.

    Raises:
        ValueError: unknown precision.
    """
    check_precision(precision)
    dtype = _DTYPES[precision]
    if dtype is None:
        return contextlib.nullcontext()
    if device_type == "cpu" and not torch.jit.is_tracing():  # a tracer cannot record what the warning asks
        _warn_of_slow_cpu(precision)
    return torch.autocast(device_type, dtype)


@functools.cache  # one warning a process
def _warn_of_slow_cpu(precision: str) -> None:
    if not _cpu_has_convolutions(precision):
        logging.getLogger(__name__).warning(
            "This CPU has no instructions for convolutions in %s: they take many times as long as in fp32.", precision
        )


def _cpu_has_convolutions(precision: str) -> bool:
    # A version of torch without the function gives no warning.
    return getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", lambda: True)()
