"""Step times of a worker out of steps that were measured: the ledger's rows, or those of the engine's own measurement."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mortice.cost.worker_times import relative_fit
from mortice.specs.errors import RequestError
from mortice.specs.worker_times import WorkerTimes

ROUNDS = 8  # of a fit to what the fit before expects

Row = Sequence[float]  # seconds, prompt tokens, their squares, sequences that decoded, their context tokens


def fit_steps(rows: Iterable[Row], *, kv_tokens: int, kv_token_bytes: float, source: str) -> WorkerTimes:
    """Non-negative least squares over steps that only prefilled, and over those that only decoded; steps that did both are
    predicted, not fitted. Errors are relative to what is expected, not to what was measured, which would have the steps that
    other work happened to spare decide (McCullagh and Nelder, Generalized Linear Models, chapter 8). Each fit is scaled to
    the sum of its steps: the time of many is right. Raises RequestError where there are too few of either kind."""
    table = np.array(list(rows), dtype=float).reshape(-1, 5)
    table = table[table[:, 0] > 0]
    prompts, decodes = (
        table[(table[:, 1] > 0) & (table[:, 3] == 0)],
        table[(table[:, 1] == 0) & (table[:, 3] > 0)],
    )
    for kind, some in (("prefilled", prompts), ("decoded", decodes)):
        if len(some) < 3:
            raise RequestError(
                f"{len(some)} steps that only {kind} are too few to fit step times", param="rows"
            )
    p = _fit(prompts[:, [1, 2]], prompts[:, 0])
    d = _fit(decodes[:, [3, 4]], decodes[:, 0])
    times = WorkerTimes(
        prefill_base_s=p[0],
        prefill_token_s=p[1],
        prefill_square_s=p[2],
        decode_base_s=d[0],
        decode_sequence_s=d[1],
        decode_context_s=d[2],
        kv_tokens=kv_tokens,
        kv_token_bytes=kv_token_bytes,
        source=source,
    )
    times.check()
    return times


def _fit(counts: NDArray[np.float64], seconds: NDArray[np.float64]) -> list[float]:
    terms = np.concatenate([np.ones((len(counts), 1)), counts], axis=1)
    weights = relative_fit(terms, seconds)
    for _ in range(ROUNDS):
        weights = relative_fit(terms, seconds, terms @ np.array(weights))
    scale = float(seconds.sum() / (terms @ np.array(weights)).sum())
    return [scale * weight for weight in weights]


def ledger_rows(path: str | Path) -> list[Row]:
    """The rows of a step ledger (`mortice serve --ledger`). Raises RequestError naming the line that cannot be read."""
    rows: list[Row] = []
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}", param="ledger") from error
    for number, line in enumerate(lines, 1):
        try:
            step = json.loads(line)
            counts = [
                float(step[name])
                for name in ("prompt_tokens", "prompt_squares", "sequences", "context_tokens")
            ]
            rows.append([sum(map(float, step["stage_s"].values())), *counts])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"{path}, line {number}: not a step of a ledger: {error!r}", param="ledger"
            ) from error
    return rows
