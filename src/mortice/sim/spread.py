"""Draws from a spread of step times (specs/step_spread.py)."""

import random

from mortice.specs.step_spread import StepSpread


class StepDraws:
    """The pace of one kind of step of one worker over time, in stretches of one factor each: the same seed and name draw
    the same stretches."""

    __slots__ = ("_ends_s", "_factor", "_factors", "_random", "_run_s")

    def __init__(self, spread: StepSpread, seed: int, name: str) -> None:
        self._factors = spread.factors
        self._run_s = spread.run_s
        self._random = random.Random(f"{seed}/{name}")
        self._factor = 1.0
        self._ends_s = -1.0  # of the stretch

    def pace(self, start_s: float, expected_s: float) -> float:
        """How many times as long as expected a step takes that starts now. It may see the end of several stretches."""
        if start_s >= self._ends_s:  # after idling: somewhere in a stretch
            self._draw(start_s, self._random.random())
        if self._run_s <= 0:
            return self._factor
        at_s, left_s = start_s, expected_s
        while (held_s := (self._ends_s - at_s) / self._factor) < left_s:
            left_s -= held_s
            at_s = self._ends_s
            self._draw(at_s)
        return (at_s + left_s * self._factor - start_s) / expected_s if expected_s > 0 else 1.0

    def holds_s(self, start_s: float) -> float:
        """Expected seconds of work from an instant on that the present stretch still takes in."""
        return max(0.0, self._ends_s - start_s) / self._factor

    def _draw(self, now_s: float, share: float = 1.0) -> None:
        self._factor = self._factors[int(self._random.random() * len(self._factors))]
        self._ends_s = now_s + share * self._run_s * self._factor
