"""Distributions and how sure they are: percentiles, bootstrap and Wilson intervals. Every interval is of 95
%."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

PERCENTILES = (50, 90, 99)
RESAMPLES = 1000
_Z95 = NormalDist().inv_cdf(0.975)

Interval = tuple[float, float]


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0 to 100) by linear interpolation between order statistics, rank (n - 1) q /
    100."""
    return float(np.percentile(np.asarray(values, dtype=float), q, method="linear"))


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a proportion; (0, 1) if nothing was tried.

    Stays inside [0, 1] and is honest at 0 and at 1, where the normal approximation claims certainty.
    """
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z95 * _Z95
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 / (1 + z2 / trials) * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, float(centre - half))
    high = 1.0 if successes == trials else min(1.0, float(centre + half))
    return low, high


def summary(values: Sequence[float], *, seed: int, intervals: bool = True) -> dict:
    """mean, min, p50, p90, p99, max, num; with `ci95`: the interval of the mean and of each percentile.

    Intervals come from the bootstrap (resampling values as independent draws, `RESAMPLES` times). An empty
    input gives None for every figure: nothing was measured.
    """
    names = [f"p{q}" for q in PERCENTILES]
    if not len(values):
        return {"num": 0, **dict.fromkeys(["mean", "min", *names, "max"])}
    data = np.asarray(values, dtype=float)
    points = np.percentile(data, PERCENTILES, method="linear")
    result: dict = {"num": len(data), "mean": float(data.mean()), "min": float(data.min())}
    result |= dict(zip(names, map(float, points), strict=True)) | {"max": float(data.max())}
    if intervals:
        result["ci95"] = _bootstrap(data, names, seed)
    return result


def _bootstrap(data: np.ndarray, names: list[str], seed: int) -> dict[str, Interval]:
    rng = np.random.default_rng(seed)
    draws = np.empty((RESAMPLES, 1 + len(names)))
    for i in range(RESAMPLES):  # one resample at a time: 1000 copies of a long run would not fit in memory
        sample = data[rng.integers(0, len(data), len(data))]
        draws[i, 0] = sample.mean()
        draws[i, 1:] = np.percentile(sample, PERCENTILES, method="linear")
    low, high = np.percentile(draws, (2.5, 97.5), axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(["mean", *names], low, high, strict=True)}


def overlap(a: Interval, b: Interval) -> bool:
    """Two results whose intervals overlap are tied: the data does not tell them apart."""
    return a[0] <= b[1] and b[0] <= a[1]
