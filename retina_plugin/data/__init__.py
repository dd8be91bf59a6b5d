"""Data sets, registered with Detectron2 on import; nothing is read or written before one is loaded."""

from .quick_start import DigitsRecipe, register_digits

register_digits(DigitsRecipe())
