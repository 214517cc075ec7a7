"""Load ahead of time: last value, EWMA, ARIMA, and a quantile over the start-up horizon.

One-step means do not hide a start-up of several periods, and on bursty traffic every predictor misses 40 to 50 % of the
mean; so the quantile forecaster adds what the level has lately been exceeded by within the horizon. Whatever comes out
that is not a finite number of at least 0 within reach of the past is not trusted: the last value takes its place.
"""

import math
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Literal, Protocol

ForecastName = Literal["last", "ewma", "arima", "quantile"]
HISTORY = 100
MAX_JUMP = 4.0  # times the largest value remembered


class Forecaster(Protocol):
    def predict(self, past: Sequence[float], steps: int) -> float:
        """The largest mean to be ready for in the next `steps` intervals; `past` is oldest first and not empty."""


class LastValue:
    def predict(self, past: Sequence[float], steps: int) -> float:
        return past[-1]


class Constant:
    """Always the same, whatever it is: what a broken forecaster looks like."""

    def __init__(self, answer: float) -> None:
        self.answer = answer

    def predict(self, past: Sequence[float], steps: int) -> float:
        return self.answer


class Ewma:
    def __init__(self, weight: float = 0.5) -> None:
        self.weight = weight

    def predict(self, past: Sequence[float], steps: int) -> float:
        return _level(past, self.weight)


class Arima:
    """ARIMA(1, 0, 1) on the last 50 intervals (statsmodels); fewer than five, or a series that does not move: the last."""

    def __init__(self, order: tuple[int, int, int] = (1, 0, 1), history: int = 50) -> None:
        self.order, self.history = order, history

    def predict(self, past: Sequence[float], steps: int) -> float:
        recent = list(past[-self.history :])
        if len(recent) < 5 or max(recent) == min(recent):
            return recent[-1]
        from statsmodels.tsa.arima.model import ARIMA  # heavy: only where it was asked for

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fit that did not converge is caught by the trust check
            fitted = ARIMA(recent, order=self.order).fit()
            return float(max(fitted.forecast(steps)))


class Quantile:
    """EWMA plus the `share` quantile of how far its own peak over the next `steps` intervals was above it in the past.
    Of the level, not of single intervals: how far chance lifts these above it is in what a fleet carries already."""

    def __init__(self, share: float = 0.9, weight: float = 0.5) -> None:
        self.share, self.weight = share, weight

    def predict(self, past: Sequence[float], steps: int) -> float:
        levels = [past[0]]
        for value in past[1:]:
            levels.append(self.weight * value + (1 - self.weight) * levels[-1])
        level = levels[-1]
        above = [max(levels[i + 1 : i + 1 + steps]) - levels[i] for i in range(len(levels) - 1)]
        if len(above) < 4:
            return max(level, past[-1])
        above.sort()
        return level + max(0.0, above[min(len(above) - 1, math.ceil(self.share * len(above)) - 1)])


def _level(past: Sequence[float], weight: float) -> float:
    level = past[0]
    for value in past[1:]:
        level = weight * value + (1 - weight) * level
    return level


def forecaster(name: ForecastName) -> Forecaster:
    made: dict[ForecastName, Forecaster] = {
        "last": LastValue(),
        "ewma": Ewma(),
        "arima": Arima(),
        "quantile": Quantile(),
    }
    return made[name]


class Trusted:
    """A series with a forecaster that is not believed blindly. `distrusted` counts the times it was not."""

    def __init__(self, inner: Forecaster, history: int = HISTORY) -> None:
        self.inner = inner
        self.past: deque[float] = deque(maxlen=history)
        self.distrusted = 0

    def add(self, value: float) -> None:
        """A value that is no number, or negative, is not remembered."""
        if math.isfinite(value) and value >= 0:
            self.past.append(value)

    def predict(self, steps: int) -> tuple[float, str]:
        """(value, "" or why the forecast was not used)."""
        if not self.past:
            return 0.0, "nothing seen yet"
        past = list(self.past)
        try:
            value = float(self.inner.predict(past, max(1, steps)))
        except (ValueError, ArithmeticError, IndexError) as error:  # numpy's LinAlgError is a ValueError
            value, why = math.nan, f"the forecaster failed: {error}"
        else:
            why = ""
        if not math.isfinite(value):
            why = why or "the forecast is no number"
        elif value < 0:
            why = f"the forecast is {value:.3g}"
        elif value > MAX_JUMP * max(past):
            why = f"the forecast {value:.3g} is far beyond all that was seen"
        if why:
            self.distrusted += 1
            return past[-1], why
        return value, ""
