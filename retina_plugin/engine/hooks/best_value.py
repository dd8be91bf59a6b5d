"""Whether a value is better than those before."""

import math


class BestValue:
    """The best value of a metric so far, and when it was reached. What is not finite is never better.

    Attributes:
        value: None before the first finite value.
        iteration: iterations that were done then.
    """

    def __init__(self, mode, min_delta=0.0):
        """
        Args:
            mode: "max", the highest value is the best, or "min".
            min_delta: a value is better if it is by more than this.

        Raises:
            ValueError: unknown mode, negative min_delta.
        """
        if mode not in ("max", "min"):
            raise ValueError(f"mode '{mode}' is none of max, min")
        if not min_delta >= 0:
            raise ValueError(f"min_delta must be at least 0, got {min_delta}")
        self.mode = mode
        self.min_delta = min_delta
        self.value = None
        self.iteration = None

    def improves(self, value):
        """Whether ``value`` is better than the best so far."""
        if value is None or not math.isfinite(value):
            return False
        if self.value is None:
            return True
        gain = value - self.value if self.mode == "max" else self.value - value
        return gain > self.min_delta

    def update(self, value, iteration):
        """Take a value in if it is better; returns whether it was."""
        better = self.improves(value)
        if better:
            self.value, self.iteration = value, iteration
        return better

    def state_dict(self):
        return {"value": self.value, "iteration": self.iteration}

    def load_state_dict(self, state):
        self.value, self.iteration = state["value"], state["iteration"]
