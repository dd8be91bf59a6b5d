"""Which value of a metric is better."""

import math

import numpy as np
import pytest

from retina_plugin.engine.hooks.metric import improves


@pytest.mark.parametrize("mode", ["max", "min"])
def test_best_of_random_values_is_the_first_finite_extreme(mode):
    rng = np.random.default_rng()
    for _ in range(50):
        values = rng.integers(0, 6, 12).astype(float)  # with ties
        values[rng.random(12) < 0.4] = rng.choice([math.nan, math.inf, -math.inf])
        best, where = None, None
        for i, value in enumerate(values.tolist()):
            if improves(value, best, mode):
                best, where = value, i
        finite = np.where(np.isfinite(values), values, -math.inf if mode == "max" else math.inf)
        expected = int(finite.argmax() if mode == "max" else finite.argmin())
        if np.isfinite(values).any():
            assert (where, best) == (expected, values[expected])
        else:
            assert best is where is None


def test_a_difference_of_min_delta_is_not_an_improvement():
    best, improved = None, []
    for value in [3.0, 2.5, 2.25, 1.75, 1.74]:
        improved.append(improves(value, best, "min", min_delta=0.5))
        best = value if improved[-1] else best
    assert improved == [True, False, True, False, True]
