"""The data set of the ablation: ``sparse_digits_train`` and ``sparse_digits_test``, a digit at most in each image."""

from retina_plugin.data import DigitsRecipe, register_digits

register_digits(DigitsRecipe(name="sparse_digits", side=192, max_digits=1))
