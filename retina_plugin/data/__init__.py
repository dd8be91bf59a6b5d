"""Data sets, registered with Detectron2 on import; nothing is read or written before one is loaded."""

from retina_plugin.data.datasets.digits import DigitsRecipe, register_digits
from retina_plugin.data.datasets.trees import register_trees

register_digits(DigitsRecipe())
register_trees()
