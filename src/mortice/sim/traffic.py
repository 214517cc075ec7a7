"""A trace made ready to be replayed: its rate, how much of it, its clock's tick undone, what is too long."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mortice.sim.request import SimRequest
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


def requests_of(trace: Trace, block_size: int, *, max_total: int, name_bytes: int = 8) -> list[SimRequest]:
    """The trace's arrivals as simulated requests. Raises RequestError naming the row that is longer than `max_total`."""
    made = []
    for index, row in enumerate(trace.requests):
        if row.prompt_len + row.output_len > max_total:
            raise RequestError(
                f"{trace.name}, request {index + 1}: {row.prompt_len} + {row.output_len} tokens exceed the {max_total} that "
                "a worker holds; clip the trace (--clip) or give more memory",
                param="trace",
            )
        names: list[bytes] = []
        if trace.block_tokens:
            if trace.block_tokens % block_size:
                raise RequestError(
                    f"limits.block_size {block_size} does not divide the trace's blocks of {trace.block_tokens} tokens",
                    param="limits.block_size",
                )
            names = _names(row.blocks, row.prompt_len, trace.block_tokens, block_size, name_bytes)
        leaves_s = math.inf if row.leaves_after_s is None else row.at_s + row.leaves_after_s
        made.append(SimRequest(index, row.at_s, row.prompt_len, row.output_len, names, leaves_s))
    return made


def _names(
    blocks: Sequence[int], prompt_len: int, unit: int, block_size: int, name_bytes: int
) -> list[bytes]:
    """Names of the full blocks of the prompt: the trace's id, and which part of it."""
    parts = unit // block_size
    names = [(block * parts + part).to_bytes(name_bytes, "big") for block in blocks for part in range(parts)]
    return names[: prompt_len // block_size]
