"""The kernel model taught by measurements: the ratio of measured to modelled time, interpolated between rows.

In the logarithms of the sizes the ratio varies slowly (the model carries the scaling), so the nearest rows, weighted by
inverse square distance and corrected by their local slope, predict it. Beyond `REACH` octaves from any row the ratio
fades to the table's median: the answer says `extrapolated`.
"""

from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.cost.accounting import Number
from mortice.cost.assumption import Assumption
from mortice.cost.guards import GuardReport, guarded, log_features
from mortice.cost.kernels import Kernels
from mortice.cost.modelled import modelled
from mortice.cost.profile_table import FEATURES, ProfileTable, read_profile
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec

NEIGHBOURS = 8
REACH = 2.0  # octaves
NEAR = 0.02  # octaves: below it a row is the point itself


class _Field:
    """log(measured / modelled) over the log sizes of one operator and variant."""

    def __init__(self, points: NDArray[np.float64], ratios: NDArray[np.float64], source: str) -> None:
        from scipy.spatial import cKDTree  # heavy, and needed only with a calibration

        self.tree: Any = cKDTree(points)
        self.points = points
        self.ratios = ratios
        self.source = source
        self.median = float(np.median(ratios))
        self.neighbours = min(NEIGHBOURS, len(ratios))

    def at(self, wanted: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """log ratio at points (n, features), and which were out of reach."""
        distance, index = self.tree.query(wanted, k=self.neighbours)
        distance, index = distance.reshape(len(wanted), -1), index.reshape(len(wanted), -1)
        weight = 1.0 / np.maximum(distance, NEAR) ** 2
        value = (weight * self.ratios[index]).sum(axis=1) / weight.sum(axis=1)
        value = value + self._slope(wanted, index, weight, value)
        fade = np.clip(2.0 - distance[:, 0] / REACH, 0.0, 1.0)
        return fade * value + (1 - fade) * self.median, distance[:, 0] > REACH

    def _slope(
        self,
        wanted: NDArray[np.float64],
        index: NDArray[np.int64],
        weight: NDArray[np.float64],
        value: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Correction for neighbours that lie to one side: ridge regression on their offsets, bounded to the spread of
        their ratios."""
        share = weight / weight.sum(axis=1, keepdims=True)
        offset = self.points[index] - wanted[:, None, :]
        centre = (share[:, :, None] * offset).sum(axis=1)
        deviation = self.ratios[index] - value[:, None]
        moved = offset - centre[:, None, :]
        gram = np.einsum("nk,nki,nkj->nij", share, moved, moved) + 0.05 * np.eye(offset.shape[2])
        pull = np.einsum("nk,nki,nk->ni", share, moved, deviation)
        slope = np.linalg.solve(gram, pull[:, :, None])[:, :, 0]
        step = -(slope * centre).sum(axis=1)
        spread = np.abs(deviation).max(axis=1)
        bounded: NDArray[np.float64] = np.clip(step, -spread, spread)
        return bounded


class Calibration:
    """Corrections for one kind of hardware; what `Kernels(hardware, calibration)` takes."""

    def __init__(self, hardware: HardwareSpec, reports: tuple[GuardReport, ...] = ()) -> None:
        self.hardware = hardware
        self.reports = reports
        self.extrapolated: set[tuple[str, str]] = set()
        self._fields: dict[tuple[str, str], _Field] = {}

    def learn(self, table: ProfileTable) -> None:
        """Add a table's rows (guarded before, see `calibrate`)."""
        if len(table) < 2:
            return
        ratios = np.log(table.seconds / modelled(table, Kernels(self.hardware)))
        self._fields[table.operator, table.variant] = _Field(
            log_features(table.matrix()), ratios, table.source
        )

    @property
    def covers(self) -> tuple[tuple[str, str], ...]:
        """(operator, variant) of what was learnt."""
        return tuple(self._fields)

    def ratio(self, operator: str, variant: str, features: dict[str, Number]) -> Number:
        """Measured over modelled time; 1 for an operator or variant without rows."""
        field = self._fields.get((operator, variant))
        if field is None:
            return 1.0
        columns = np.broadcast_arrays(*(np.asarray(features[name], float) for name in FEATURES[operator]))
        matrix = np.stack([column.ravel() for column in columns], axis=1)
        if not len(matrix):
            return cast(Number, np.ones(columns[0].shape))
        unique, where = np.unique(matrix, axis=0, return_inverse=True)
        value, far = field.at(log_features(unique))
        if far.any():
            self.extrapolated.add((operator, variant))
        return cast(Number, np.exp(value)[where.ravel()].reshape(columns[0].shape))

    def assumptions(self) -> tuple[Assumption, ...]:
        """Where the measurements come from, and what lay outside them so far."""
        known = [
            Assumption(f"{op} at {variant}", "measured", f.source)
            for (op, variant), f in self._fields.items()
        ]
        far = [
            Assumption(
                f"{op} at {variant}", "extrapolated", f"more than {REACH:g} octaves from any measured size"
            )
            for op, variant in sorted(self.extrapolated)
        ]
        return (*known, *far)


def calibrate(tables: list[ProfileTable], hardware: HardwareSpec) -> Calibration:
    """A calibration from tables of this hardware, bad rows dropped. Raises RequestError where a table is of another."""
    kept, reports = [], []
    for table in tables:
        if table.hardware != hardware.name:
            raise RequestError(
                f"profile: the rows are of {table.hardware}, not of {hardware.name}", param="hardware"
            )
        clean, report = guarded(table, hardware)
        kept.append(clean)
        reports.append(report)
    calibration = Calibration(hardware, tuple(reports))
    for table in kept:
        calibration.learn(table)
    return calibration


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """Error of operator latency on rows that the calibration did not see."""

    operator: str
    variant: str
    rows: int
    median_error: float  # of |predicted / measured - 1|
    p90_error: float
    median_uncalibrated: float  # the same without any calibration
    median_unguarded: float  # the same as median_error over all held-out rows, those that guards call bad too
    by: str  # what was held out: rows or shapes


SHAPE_OF = {  # features that make a shape: held out whole under by="shapes"
    "gemm": ("n", "k"),
    "experts": ("hidden", "size", "experts", "ep"),
    "decode_attention": ("heads", "kv_heads", "head_dim"),
    "decode_mla": ("heads",),
    "prefill_attention": ("heads", "kv_heads", "head_dim"),
    "prefill_mla": ("heads",),
}


def held_out_report(
    tables: list[ProfileTable], hardware: HardwareSpec, *, share: float = 0.2, by: str = "rows", seed: int = 0
) -> list[HeldOut]:
    """Calibrate on 1 - `share` of each table and score the rest; `by` is "rows" (any) or "shapes" (whole shapes, as a
    model that nobody measured has)."""
    if by not in ("rows", "shapes") or not 0 < share < 1:
        raise RequestError(
            f"held out by rows or shapes, a share between 0 and 1: {by!r}, {share}", param="by"
        )
    report = []
    for raw in tables:
        hidden = _held_out(raw, share, by, np.random.default_rng(seed))
        if hidden.sum() < 4 or (~hidden).sum() < 4:
            continue
        calibration = Calibration(hardware)
        calibration.learn(guarded(raw.take(~hidden), hardware)[0])
        everything = _errors(raw.take(hidden), calibration)
        clean, _ = guarded(raw.take(hidden), hardware)
        if not len(clean):
            continue
        error = _errors(clean, calibration)
        plain = modelled(clean, Kernels(hardware))
        report.append(
            HeldOut(
                operator=raw.operator,
                variant=raw.variant,
                rows=len(clean),
                median_error=float(np.median(error)),
                p90_error=float(np.quantile(error, 0.9)),
                median_uncalibrated=float(np.median(np.abs(plain / clean.seconds - 1))),
                median_unguarded=float(np.median(everything)),
                by=by,
            )
        )
    return report


def _errors(test: ProfileTable, calibration: Calibration) -> NDArray[np.float64]:
    """|predicted / measured - 1| of rows; those without a positive time count as wrong altogether."""
    plain = modelled(test, Kernels(calibration.hardware))
    predicted = plain * np.asarray(calibration.ratio(test.operator, test.variant, dict(test.features)))
    timed = np.isfinite(test.seconds) & (test.seconds > 0)
    error = np.ones(len(test))
    error[timed] = np.abs(predicted[timed] / test.seconds[timed] - 1)
    return error


def _held_out(table: ProfileTable, share: float, by: str, draw: np.random.Generator) -> NDArray[np.bool_]:
    if by == "rows":
        return draw.random(len(table)) < share
    keys = np.stack([table.features[name] for name in SHAPE_OF[table.operator]], axis=1)
    shapes, which = np.unique(keys, axis=0, return_inverse=True)
    return (draw.random(len(shapes)) < share)[which.ravel()]


def shipped_calibration(hardware: HardwareSpec) -> Calibration | None:
    """From the profile that ships for this hardware (measured by `mortice plan profile`), or None."""
    path = Path(__file__).parent / "profiles" / f"{hardware.name}.json"
    return calibrate(read_profile(path), hardware) if path.is_file() else None
