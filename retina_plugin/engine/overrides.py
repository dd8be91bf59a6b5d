"""Which methods a project's trainer has of its own."""

import inspect


def overrides(trainer: type, name: str, stock: type) -> bool:
    """Whether the method ``name`` of a trainer is another than that of ``stock``."""
    return inspect.getattr_static(trainer, name, None) is not inspect.getattr_static(stock, name)
