"""Error of the cost model on measurements of aiconfigurator-core (Apache-2.0): operators, collectives, end-to-end TPOT.

    pip install aiconfigurator-core pyarrow scipy
    python benchmarks/cost_against_aic.py [--folder UNPACKED_WHEEL] [--by rows|shapes] [--json]

Operators: calibrate on 80 % of each table's rows (or shapes), score the others. End to end: kernels calibrated on the
engine's own tables; three coefficients an engine and hardware are fitted on half of the runs, the other half is scored.
Half by the parity of a hash of the configuration, so no configuration lies on both sides.
"""

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from mortice.cost import Kernels, Layout
from mortice.cost.aic import FRAMEWORKS, import_collectives, import_tables, wheel_folder
from mortice.cost.aic_served import ServedRow, read_served
from mortice.cost.calibration import Calibration, calibrate, held_out_report
from mortice.cost.serving import EngineFit, fit_engine, loop_terms, tpot_s
from mortice.specs.catalogue import load_hardware, load_model
from mortice.specs.errors import NotFound, RequestError

HARDWARE = ("h100", "h200", "b200", "gb200")


def operators(folder: Path | None, by: str) -> list[dict]:
    results = []
    for name in HARDWARE:
        hardware = load_hardware(name)
        for framework in FRAMEWORKS:
            try:
                tables = import_tables(name, framework, folder)
            except NotFound:
                continue
            for score in held_out_report(tables, hardware, by=by):
                results.append(
                    {
                        "hardware": name,
                        "framework": framework,
                        **{f: getattr(score, f) for f in score.__struct_fields__},
                    }
                )
    return results


def collectives(folder: Path | None) -> list[dict]:
    """NCCL tables as latency plus bytes over bus bandwidth: the fit's median error on its own rows."""
    return [
        {
            "hardware": name,
            "operator": fit.operator,
            "ranks": fit.ranks,
            "latency_us": round(1e6 * fit.knees[0][1], 1),
            "bus_gb_per_s": round(fit.bus_bytes_per_s / 1e9),
            "median_error": fit.median_error,
        }
        for name in HARDWARE
        for fit in import_collectives(name, folder)
    ]


def by_hardware(scores: list[dict]) -> list[dict]:
    """Operator errors of each card: the tables' medians weighed by rows, and the worst table."""
    lines = []
    for name in HARDWARE:
        mine = [s for s in scores if s["hardware"] == name]
        rows = np.array([s["rows"] for s in mine], dtype=float)

        def mean(field: str, mine: list[dict] = mine, rows: np.ndarray = rows) -> float:
            return float(np.dot(rows, [s[field] for s in mine]) / rows.sum())

        lines.append(
            {
                "hardware": name,
                "tables": len(mine),
                "rows": int(rows.sum()),
                "median_error": mean("median_error"),
                "worst_table": max(s["median_error"] for s in mine),
                "unguarded": mean("median_unguarded"),
                "uncalibrated": mean("median_uncalibrated"),
            }
        )
    return lines


def half(row: ServedRow) -> int:
    """0 or 1 by configuration: its runs at all concurrencies lie on one side."""
    layout = f"{row.tp} {row.dp} {row.ep} {row.formats}"
    key = f"{row.model} {row.hardware} {row.engine} {layout} {row.prompt_len} {row.output_len}"
    return hashlib.sha256(key.encode()).digest()[0] % 2


def group_terms(
    rows: list[ServedRow], calibrations: dict[tuple[str, str], Calibration | None], folder: Path | None
) -> np.ndarray:
    """Terms of every row; rows of one model, hardware, engine and format are priced in one call."""
    grouped = defaultdict(list)
    for i, row in enumerate(rows):
        grouped[row.model, row.hardware, row.engine, row.formats, row.colocated].append(i)
    terms = np.zeros((len(rows), 3))
    for (model, hardware, engine, formats, colocated), where in grouped.items():
        spec = load_hardware(hardware)
        if (hardware, engine) not in calibrations:
            try:
                calibrations[hardware, engine] = calibrate(import_tables(hardware, engine, folder), spec)
            except NotFound:
                calibrations[hardware, engine] = None

        def column(field: str, where: list[int] = where) -> np.ndarray:
            return np.array([float(getattr(rows[i], field)) for i in where])

        terms[where] = loop_terms(
            load_model(model),
            Kernels(spec, calibrations[hardware, engine]),
            Layout(tp=column("tp"), dp=column("dp"), ep=column("ep")),
            column("concurrency"),
            column("prompt_len"),
            column("output_len"),
            formats,
            colocated=colocated,
        )
    return terms


def end_to_end(folder: Path | None) -> dict:
    rows, left = read_served(wheel_folder(folder))
    terms = group_terms(rows, {}, folder)
    measured = np.array([row.tpot_s for row in rows])
    side = np.array([half(row) for row in rows])
    predicted = np.zeros(len(rows))
    fits = {}
    keys = [(row.engine, row.hardware) for row in rows]
    for key in sorted(set(keys)):
        mine = np.array([each == key for each in keys])
        for test in (0, 1):
            train = mine & (side != test)
            if train.sum() < 6:
                train = np.array([e == key[0] for e, _ in keys]) & (side != test)
            fit = fit_engine(terms[train], measured[train], f"{train.sum()} runs of {' on '.join(key)}")
            predicted[mine & (side == test)] = tpot_s(terms[mine & (side == test)], fit)
            fits[f"{key[0]} {key[1]} {test}"] = fit.assumption().value
    error = predicted / measured - 1
    plain = tpot_s(terms, EngineFit()) / measured - 1
    return {
        "rows": len(rows),
        "left_out": left,
        "held_out": summary(error),
        "no_fit": summary(plain),
        "by_engine": {e: summary(error[[r.engine == e for r in rows]]) for e in FRAMEWORKS},
        "by_hardware": {
            h: summary(error[[r.hardware == h for r in rows]]) for h in sorted({r.hardware for r in rows})
        },
        "by_model": {
            m: summary(error[[r.model == m for r in rows]]) for m in sorted({r.model for r in rows})
        },
        "fits": fits,
    }


def summary(error: np.ndarray) -> dict:
    absolute = np.abs(error)
    if not len(error):
        return {"rows": 0}
    return {
        "rows": len(error),
        "median": round(float(np.median(absolute)), 4),
        "mean": round(float(absolute.mean()), 4),
        "within_20": round(float((absolute <= 0.2).mean()), 4),
        "bias": round(float(np.median(error)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--by", choices=("rows", "shapes"), default="rows")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        folder = wheel_folder(options.folder)
        scores, joined, served = operators(folder, options.by), collectives(folder), end_to_end(folder)
    except RequestError as error:
        sys.exit(error.message)
    if options.json:
        print(json.dumps({"operators": scores, "collectives": joined, "end_to_end": served}, indent=1))
        return
    print(
        f"operators, held out by {options.by}: median absolute error (90th percentile; without calibration)"
    )
    for s in scores:
        print(
            f"  {s['hardware']:6s} {s['framework']:7s} {s['operator']:18s} {s['variant']:10s} {s['rows']:6d} rows "
            f"{s['median_error']:6.1%} ({s['p90_error']:6.1%}; {s['median_uncalibrated']:6.1%})"
        )
    print("all tables of a card, weighed by rows")
    for s in by_hardware(scores):
        print(
            f"  {s['hardware']:6s} {s['tables']} tables, {s['rows']} rows: {s['median_error']:.1%}, worst table "
            f"{s['worst_table']:.1%}, bad rows not dropped {s['unguarded']:.1%}, uncalibrated {s['uncalibrated']:.1%}"
        )
    print("collectives: latency plus bytes over bus bandwidth, median error on the rows")
    for s in joined:
        print(
            f"  {s['hardware']:6s} {s['operator']:14s} {s['ranks']} ranks {s['latency_us']:5.1f} us "
            f"{s['bus_gb_per_s']:4d} GB/s {s['median_error']:6.1%}"
        )
    print(f"end-to-end TPOT, {served['rows']} runs (left out: {served['left_out']})")
    for name in ("held_out", "no_fit"):
        print(f"  {name}: {served[name]}")
    for name in ("by_engine", "by_hardware", "by_model"):
        for key, value in served[name].items():
            print(f"  {key}: {value}")


if __name__ == "__main__":
    main()
