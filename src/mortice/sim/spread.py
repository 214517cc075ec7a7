"""Draws from a spread of step times (specs/step_spread.py)."""

import random

from mortice.specs.step_spread import StepSpread


class StepDraws:
    """Draws for one kind of step of one worker: the same seed and name draw the same factors."""

    __slots__ = ("_factors", "_random", "factor", "left", "run")

    def __init__(self, spread: StepSpread, seed: int, name: str) -> None:
        self._factors = spread.factors
        self._random = random.Random(f"{seed}/{name}")
        self.run = spread.run
        self.left = 0  # steps for which `factor` still holds
        self.factor = 1.0

    def renew(self) -> float:
        """The factor of the next step."""
        if self.left <= 0:
            self.factor = self._factors[int(self._random.random() * len(self._factors))]
            self.left = self.run
        return self.factor

    def next(self) -> float:
        """The factor of one step, spent with it."""
        factor = self.renew()
        self.left -= 1
        return factor

    def spend(self, steps: int) -> None:
        self.left -= steps
