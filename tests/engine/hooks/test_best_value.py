"""Which of some values is the best."""

import math

import numpy as np
import pytest

from retina_plugin.engine.hooks.best_value import BestValue


@pytest.mark.parametrize("mode", ["max", "min"])
def test_best_of_random_values_is_the_first_extreme_that_is_finite(mode):
    rng = np.random.default_rng()
    for _ in range(50):
        values = rng.integers(0, 6, 12).astype(float)  # with ties
        values[rng.random(12) < 0.4] = rng.choice([math.nan, math.inf, -math.inf])
        best = BestValue(mode)
        for i, value in enumerate(values.tolist()):
            best.update(value, i)
        finite = np.where(np.isfinite(values), values, -math.inf if mode == "max" else math.inf)
        expected = int(finite.argmax() if mode == "max" else finite.argmin())
        if np.isfinite(values).any():
            assert (best.iteration, best.value) == (expected, values[expected])
        else:
            assert best.value is best.iteration is None


def test_an_improvement_by_min_delta_is_none():
    best = BestValue("min", min_delta=0.5)
    assert [best.update(v, i) for i, v in enumerate([3.0, 2.5, 2.25, 1.75, 1.74])] == [True, False, True, False, True]


def test_state_survives():
    best = BestValue("max")
    best.update(4.5, 20)
    other = BestValue("max")
    other.load_state_dict(best.state_dict())
    assert not other.update(4.5, 30) and other.iteration == 20


@pytest.mark.parametrize("arguments", [("highest",), ("max", -0.1), ("max", math.nan)])
def test_what_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError):
        BestValue(*arguments)
