"""When requests come: renewal processes and what is done to a trace before it is replayed."""

from typing import Literal

import msgspec
import numpy as np

from mortice.specs.workload import Trace

Process = Literal["poisson", "gamma"]


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A renewal process: independent gaps of mean 1 / rate. Poisson has CV 1; gamma has the CV it is
    given."""

    process: Process = "poisson"
    rate: float  # requests a second
    cv: float = 1.0  # standard deviation of the gaps over their mean

    def times(self, count: int, seed: int) -> list[float]:
        """`count` arrival instants in seconds, the first at 0.

        The gaps at two rates are the same draws, scaled: rates are compared under the same luck.
        """
        if count == 0:
            return []
        rng = np.random.default_rng(seed)
        if self.process == "poisson":
            gaps = rng.exponential(1.0, count - 1)
        else:
            shape = 1.0 / (self.cv * self.cv)  # a gamma of shape k has CV 1 / sqrt(k)
            gaps = rng.gamma(shape, 1.0 / shape, count - 1)
        return [0.0, *np.cumsum(gaps / self.rate).tolist()]


def jittered(trace: Trace, tick_s: float, seed: int) -> Trace:
    """Undo a clock that ticks every `tick_s`: each arrival later by a uniform draw from [0, tick_s)."""
    rng = np.random.default_rng(seed)
    return trace.moved(rng.uniform(0.0, tick_s, len(trace.requests)).tolist())
