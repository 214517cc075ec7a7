"""Rows of a profile that cannot be what they say: found before they teach the cost model.

Each guard answers a mask of bad rows; `guarded` drops them and reports how many fell to which. A kernel that is truly
slow is no bad row: it is kept, and named, so that the planner prices it.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.cost.modelled import lower_bound
from mortice.cost.profile_table import ProfileTable
from mortice.specs.hardware import HardwareSpec

FASTER_THAN_PHYSICS = 0.92  # of the bound: clocks boost above the specified peak by some percent
FLOOR_S = (
    40e-6  # a kernel's launch takes some microseconds; a table that never falls below this times its harness
)
FLOOR_EXPERTS_S = (
    120e-6  # the same for experts, whose call is a chain of kernels (routing, two products, combine)
)
FLOOR_SPREAD = 1.5  # rows up to this factor above the floor belong to it
OUTLIER = 4.0  # factor by which a row differs from the median of its neighbours
SLOW_KERNEL = 10.0  # measured over bound at which a shape has no fast kernel
NEIGHBOURS = 6


class GuardReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was dropped from a table, and what is kept but worth knowing."""

    hardware: str
    operator: str
    variant: str
    rows: int
    dropped: dict[str, int]  # guard -> rows
    floor_us: float = 0.0  # harness floor that was found; 0: none
    slow_kernels: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        return self.rows - sum(self.dropped.values())


def guarded(table: ProfileTable, hardware: HardwareSpec) -> tuple[ProfileTable, GuardReport]:
    """The table without rows that no kernel can have produced, and the report."""
    everything, dropped = len(table), {}
    sane = np.isfinite(table.seconds) & (table.seconds > 0) & (table.matrix() >= 0).all(axis=1)
    table, dropped["not a time"] = table.take(sane), int((~sane).sum())
    bound = lower_bound(table, hardware)
    fast = table.seconds < FASTER_THAN_PHYSICS * bound
    table, dropped["faster than the roofline"] = table.take(~fast), int(fast.sum())
    bound = bound[~fast]
    floor = harness_floor(table, bound)
    floored = (table.seconds < FLOOR_SPREAD * floor) & (bound < 0.5 * floor)
    table, dropped["harness floor"] = table.take(~floored), int(floored.sum())
    bound = bound[~floored]
    odd = outliers(table)
    table, dropped["outlier"] = table.take(~odd), int(odd.sum())
    bound = bound[~odd]
    return table, GuardReport(
        hardware=table.hardware,
        operator=table.operator,
        variant=table.variant,
        rows=everything,
        dropped={reason: count for reason, count in dropped.items() if count},
        floor_us=floor * 1e6,
        slow_kernels=slow_kernels(table, bound),
    )


def harness_floor(table: ProfileTable, bound: NDArray[np.float64]) -> float:
    """Seconds under which a table's rows never fall although physics would let them: time of the harness, not of the
    kernel. 0 where the smallest rows are as fast as launches are."""
    limit = FLOOR_EXPERTS_S if table.operator == "experts" else FLOOR_S
    tiny = bound < 0.1 * limit
    if tiny.sum() < 8:
        return 0.0
    lowest = float(np.quantile(table.seconds[tiny], 0.02))
    return lowest if lowest > limit else 0.0


def outliers(table: ProfileTable) -> NDArray[np.bool_]:
    """Rows far from the median of their neighbours' excess over a smooth trend in the logarithms."""
    if len(table) < 4 * NEIGHBOURS:
        return np.zeros(len(table), dtype=bool)
    from scipy.spatial import cKDTree  # heavy, and needed for calibration alone

    points = log_features(table.matrix())
    trend = np.log(table.seconds)
    design = np.column_stack([np.ones(len(points)), points, points**2])
    weights, *_ = np.linalg.lstsq(design, trend, rcond=None)
    excess = trend - design @ weights
    _, near = cKDTree(points).query(points, k=NEIGHBOURS + 1)
    usual = np.median(excess[near[:, 1:]], axis=1)
    spread = np.abs(excess[near[:, 1:]] - usual[:, None]).max(axis=1)
    odd: NDArray[np.bool_] = (np.abs(excess - usual) > np.log(OUTLIER)) & (spread < np.log(OUTLIER))
    return odd


def slow_kernels(table: ProfileTable, bound: NDArray[np.float64]) -> tuple[str, ...]:
    """Shapes of attention whose long rows are all far above the roofline: no fast kernel exists for them."""
    if not table.operator.startswith(("decode", "prefill")) or not len(table):
        return ()
    long = bound > 50e-6
    f, found = table.features, []
    shapes = np.stack([f["heads"], f["kv_heads"], f["head_dim"]], axis=1)
    for shape in np.unique(shapes[long], axis=0):
        rows = long & (shapes == shape).all(axis=1)
        factor = float(np.median(table.seconds[rows] / bound[rows]))
        if factor > SLOW_KERNEL:
            heads, kv_heads, dim = (int(value) for value in shape)
            found.append(
                f"{heads} query heads on {kv_heads} KV heads of {dim}: {factor:.0f} times the roofline"
            )
    return tuple(found)


def log_features(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Octaves: a step of one is a doubling. Zero (no prefix) lies one octave under one token."""
    return np.log2(np.maximum(matrix, 0.5))
