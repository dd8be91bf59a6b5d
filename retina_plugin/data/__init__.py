"""Data sets, registered with Detectron2 on import; nothing is read or written before one is loaded."""

from retina_plugin.data.datasets.digits import DigitsRecipe, register_digits

register_digits(DigitsRecipe())
