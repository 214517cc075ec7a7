"""Collectives as latency plus bytes over bus bandwidth, fitted to measured sizes.

Bus bandwidth is what NCCL's tests call so: the bytes that cross a rank's link, 2 (p - 1) / p of the message in an
all-reduce and (p - 1) / p in the others, over the time.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.specs.errors import RequestError

TRAFFIC = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "alltoall": 1.0}


class CollectiveFit(msgspec.Struct, frozen=True, kw_only=True):
    """time = latency_s + traffic * (p - 1) / p * bytes / bus_bytes_per_s, with a step between small and large
    messages where the library changes its algorithm: `knees` are (least bytes, latency_s, bus_bytes_per_s)."""

    operator: str
    ranks: int
    knees: tuple[tuple[float, float, float], ...]
    median_error: float

    def seconds(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds for messages of so many bytes."""
        traffic = TRAFFIC[self.operator] * (self.ranks - 1) / self.ranks * np.asarray(moved, dtype=float)
        result = np.zeros_like(traffic)
        for least, latency, rate in self.knees:
            result = np.where(moved >= least, latency + traffic / rate, result)
        return result

    @property
    def bus_bytes_per_s(self) -> float:
        """Of the largest messages."""
        return self.knees[-1][2]


def fit_collective(
    operator: str, ranks: int, moved: NDArray[np.float64], seconds: NDArray[np.float64]
) -> CollectiveFit:
    """Piecewise fit with relative least squares on message sizes up to 64 KiB, up to 4 MiB and above."""
    if operator not in TRAFFIC or ranks < 2 or len(moved) < 2:
        raise RequestError(
            f"collective {operator!r} among {ranks} ranks with {len(moved)} sizes cannot be fitted",
            param="operator",
        )
    traffic = TRAFFIC[operator] * (ranks - 1) / ranks * moved
    knees = []
    for least, most in ((0.0, 65536.0), (65536.0, 4.0 * 2**20), (4.0 * 2**20, np.inf)):
        rows = (moved >= least) & (moved < most)
        if rows.sum() < 2:
            continue
        design = np.stack([np.ones(rows.sum()), traffic[rows]], axis=1) / seconds[rows, None]
        (latency, slope), *_ = np.linalg.lstsq(design, np.ones(rows.sum()), rcond=None)
        if latency < 0 or slope <= 0:  # not a line with both: keep the one that matters
            latency, slope = (
                (0.0, float(np.median(seconds[rows] / traffic[rows]))) if latency < 0 else (latency, 1e-18)
            )
        knees.append((least, float(latency), float(1 / slope)))
    fit = CollectiveFit(operator=operator, ranks=ranks, knees=tuple(knees), median_error=0.0)
    error = float(np.median(np.abs(fit.seconds(moved) / seconds - 1)))
    return msgspec.structs.replace(fit, median_error=error)
