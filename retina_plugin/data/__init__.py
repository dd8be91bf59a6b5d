"""Data sets, registered with Detectron2 on import; nothing is read or written before one is loaded."""

from .quick_start import register_quick_start_digits

register_quick_start_digits()
