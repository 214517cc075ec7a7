"""A trace made ready to be replayed: its rate, how much of it, its clock's tick undone, what is too long."""

import math
from typing import Literal

import numpy as np

from mortice.specs.errors import RequestError
from mortice.specs.workload import Clip, Trace

ClipRule = Literal["refuse", "truncate", "drop"]


def prepared(
    trace: Trace,
    *,
    rate: float | None = None,
    duration_s: float | None = None,
    jitter_s: float = 0.0,
    seed: int = 0,
    clip: ClipRule = "refuse",
    most: int | None = None,
) -> Trace:
    """The trace as asked for. `most`: tokens that a request may have; under `refuse` longer ones are left for the caller to
    refuse. Raises RequestError naming the option that makes no sense."""
    for name, value in (("rate", rate), ("duration", duration_s)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise RequestError(f"{name} must be above 0, not {value:g}", param=name)
    if not (math.isfinite(jitter_s) and jitter_s >= 0):
        raise RequestError(f"jitter must not be negative, not {jitter_s:g}", param="jitter")
    if duration_s is not None:
        trace = trace.until(duration_s)
    if jitter_s:
        draws = np.random.default_rng(seed).uniform(0.0, jitter_s, len(trace.requests))
        trace = trace.moved(draws.tolist())
    if clip != "refuse" and most is not None:
        half = most // 2
        trace = trace.clipped(Clip(max_input=most - half, max_output=half, rule=clip))
    if rate is not None and trace.mean_rate > 0:
        trace = trace.scaled(rate / trace.mean_rate)
    return trace
