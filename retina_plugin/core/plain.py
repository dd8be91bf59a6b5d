"""Values as Python's own numbers."""

import math
from typing import Any


def as_python(value: Any) -> Any:
    """Convert a number, an array or a tensor to Python's numbers and lists; all else stays."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_number(value: object, below: float = math.inf) -> bool:
    """Whether a value is a finite integer or float with an absolute value below a limit; true and false are not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value) and abs(value) < below
    except OverflowError:  # of an integer too large for a float
        return False
