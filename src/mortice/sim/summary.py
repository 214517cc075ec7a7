"""Distributions of a run as they are reported: linear interpolation between order statistics, intervals of 95 %."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054


def percentiles(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float | None]:
    """p50, p90, p99; None where nothing was measured."""
    if not len(values):
        return dict.fromkeys(("p50", "p90", "p99"))
    found = np.percentile(np.asarray(values, dtype=float), (50, 90, 99), method="linear")
    return {name: float(value) for name, value in zip(("p50", "p90", "p99"), found, strict=True)}


def share_interval(met: float, total: int) -> tuple[float, float]:
    """Wilson's interval of the share that `met` of `total` requests are; (0, 1) if there were none."""
    if total == 0:
        return 0.0, 1.0
    z2 = Z95 * Z95
    met /= total
    centre = (met + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(met * (1 - met) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def tied(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Two results whose intervals overlap: the data does not tell them apart."""
    return a[0] <= b[1] and b[0] <= a[1]


def finite(value: Any) -> Any:
    """JSON has no infinity: what has no value is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
