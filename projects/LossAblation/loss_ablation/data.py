"""Registers ``sparse_digits_train`` and ``sparse_digits_test``, whose images have at most one digit."""

from retina_plugin.data.datasets.digits import DigitsRecipe, register_digits

register_digits(DigitsRecipe(name="sparse_digits", side=192, max_digits=1))
