"""Values of NumPy and torch as Python's own."""

from typing import Any


def as_python(value: Any) -> Any:
    """Convert a number, an array or a tensor to Python's numbers and lists; all else stays."""
    return value.tolist() if hasattr(value, "tolist") else value
