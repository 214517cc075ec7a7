"""How far measured steps fall from the time that their counts say (specs/step_spread.py), out of a step ledger.

What the fit of the times misses is no spread: steps of like counts are compared with each other, by the median of their
ratios. What is left is taken for a pace that changes every `run_s` seconds. A mean over x such runs of work, which begins
anywhere in one, keeps the share 1 - x/3 of its variance where x <= 1, else 1/x - 1/(3 x^2): small prompts vary more than
large ones, and answers less than their steps.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mortice.cost.step_fit import Row
from mortice.specs.errors import RequestError
from mortice.specs.step_spread import StepSpread
from mortice.specs.worker_times import WorkerTimes

FEWEST = 32  # steps, to tell of their spread
WINDOWS = (1, 2, 4, 8, 16)  # steps in a row
KINDS = 8  # of steps by their expected time, compared each with its like

Floats = NDArray[np.float64]


def fit_spread(rows: Iterable[Row], times: WorkerTimes) -> tuple[StepSpread | None, StepSpread | None]:
    """The spread of one worker's steps, in the order in which they ran: of those that only decoded, and of those with
    prompts in them. None where there are too few."""
    decoded: list[Row] = []
    prompts: list[Row] = []
    for row in rows:
        if row[0] > 0 and (row[1] or row[3]):
            (prompts if row[1] else decoded).append(row)
    found = [
        measured_spread([row[0] for row in some], [times.mixed_s(*row[1:]) for row in some])
        if len(some) >= FEWEST
        else None
        for some in (decoded, prompts)
    ]
    return found[0], found[1]


def measured_spread(
    measured_s: Sequence[float], expected_s: Sequence[float], *, points: int = 64
) -> StepSpread:
    """The spread of steps that were measured in a row. Its factors have a mean of 1: what all steps have in common belongs
    to the times. Raises RequestError for fewer than 32 steps."""
    if len(measured_s) < FEWEST or len(measured_s) != len(expected_s):
        raise RequestError(f"{len(measured_s)} measured steps are too few for a spread", param="rows")
    expected = np.asarray(expected_s, float)
    ratios = np.asarray(measured_s, float) / expected
    ratios /= _of_its_like(ratios, expected)
    off = ratios / np.average(ratios, weights=expected) - 1
    run_s = _run_s(off, expected)
    alone = off / np.sqrt(_kept(expected / run_s)) if run_s else off
    factors = np.maximum(1 + np.quantile(alone, (np.arange(points) + 0.5) / points), 0.1)
    return StepSpread(factors=tuple((factors / factors.mean()).tolist()), run_s=run_s)


def _of_its_like(ratios: Floats, expected: Floats) -> Floats:
    """What steps of about the same expected time have in common: medians of groups of equal number, and a line between."""
    groups = np.array_split(np.argsort(expected, kind="stable"), min(KINDS, len(ratios) // 8))
    middles = [float(np.median(expected[group])) for group in groups]
    return np.interp(expected, middles, [float(np.median(ratios[group])) for group in groups])


def _run_s(off: Floats, expected: Floats) -> float:
    """The run under which means over one to sixteen steps in a row are as wide as those measured."""
    cells = []  # seconds of work, variance of a mean over them, how many there are
    for n in WINDOWS:
        whole = len(off) // n * n
        if whole // n < 8:
            break
        weights = expected[:whole].reshape(-1, n)
        work = weights.sum(axis=1)
        means = (off[:whole].reshape(-1, n) * weights).sum(axis=1) / work
        for group in np.array_split(np.argsort(work, kind="stable"), 3):
            cells.append((work[group].mean(), (means[group] ** 2).mean(), len(group)))
    work, found, number = np.array(cells).T
    if not found.all():
        return 0.0
    runs = np.geomspace(expected.min(), 64 * expected.max(), 200)

    def misses(run_s: float) -> float:
        logs = np.log(found) - np.log(_kept(work / run_s))
        return float(np.average((logs - np.average(logs, weights=number**0.5)) ** 2, weights=number**0.5))

    return float(min(runs, key=misses))


def _kept(runs: Floats) -> Floats:
    """Share of the variance of a pace that its mean over so many runs keeps."""
    long = np.maximum(runs, 1.0)
    return np.where(runs <= 1, 1 - runs / 3, 1 / long - 1 / (3 * long**2))
