"""Accelerator hours on a day of real rates: fixed fleets, undivided and divided in halves with decode workers that bend,
against ours, which starts and stops workers.

    .venv/bin/python benchmarks/pd/scaling.py [--mean 8] [--hours 24] [--out build/pd-scaling.json]

Rates are the 10-minute windows of ServeGen's language/m-small, scaled to a mean; Poisson within a window; lengths are Azure
conv's. A start takes 45 s and counts from its order; a stopped worker counts until its last request is over. Fixed fleets
are the smallest that keep 90 % within the SLO over the whole day.
"""

import argparse
import csv
import gzip
import json
import time
from pathlib import Path

import numpy as np
import traffic
from policies import TIMES
from traffic import USUAL

from mortice.sched.actions import Bounds
from mortice.sched.controller import Pace
from mortice.sim.cluster import Cluster, Plan
from mortice.sim.report import attainment
from mortice.sim.request import SimRequest
from mortice.sim.scenario import arrivals, pools


def day(mean: float, hours: float, seed: int = 0) -> list[SimRequest]:
    rng = np.random.default_rng(seed)
    with gzip.open(traffic.SHARED / "servegen_rate_windows.csv.gz", "rt") as file:
        rates = [
            float(row["rate_rps"]) for row in csv.DictReader(file) if row["category"] == "language/m-small"
        ]
    rates = rates[: round(hours * 6)]
    scale = mean / (sum(rates) / len(rates))
    at: list[float] = []
    for i, rate in enumerate(rates):
        count = rng.poisson(rate * scale * 600)
        at += sorted((i * 600 + rng.uniform(0, 600, count)).tolist())
    rows = traffic.azure("conv").requests
    picked = rng.integers(0, len(rows), len(at))
    return arrivals(at, [rows[i].prompt_len for i in picked], [rows[i].output_len for i in picked])


def fixed(workers: int, prefill: int) -> Plan:
    """`prefill` workers of `workers` prefill and the others decode and bend; 0: undivided."""
    if not prefill:
        return pools(TIMES, 0, 0, workers, slo=USUAL, token_budget=512)
    return pools(TIMES, prefill, workers - prefill, slo=USUAL, token_budget=1024, convertible=True)


def ours(most: int) -> Plan:
    return pools(
        TIMES, 0, 0, 2, slo=USUAL, policy="mortice", token_budget=1024,
        bounds=Bounds(max_gpus=most * TIMES.gpus, prefill_gpus=TIMES.gpus, decode_gpus=TIMES.gpus),
        pace=Pace(period_s=10.0, start_s=45.0, patience=12),
    )  # fmt: skip


def measure(plan: Plan, mean: float, hours: float) -> dict:
    requests = day(mean, hours)
    began = time.process_time()
    cluster = Cluster(plan, requests)
    cluster.run()
    actions = [type(a).__name__ for d in cluster.decisions for a in d.actions]
    return {
        "requests": len(requests),
        "attainment": attainment(requests, USUAL),
        "gpu_hours": cluster.gpu_s / 3600,
        "max_gpus": cluster.max_gpus,
        "starts": actions.count("Start"),
        "flips": actions.count("Flip"),
        "cpu_s": time.process_time() - began,
    }


def smallest(kind: str, options: argparse.Namespace) -> tuple[int, dict]:
    """The smallest fixed fleet that keeps the target over the day: doubled until it holds, then bisected."""
    too_few, workers, found = 0, 0, {}
    while workers - too_few != 1:
        middle = (too_few + workers) // 2 if workers else max(1, 2 * too_few)
        tried: dict = {}
        for prefill in [0] if kind == "undivided" else {middle // 2, (middle + 1) // 2}:
            one = measure(fixed(middle, prefill), options.mean, options.hours)
            print(kind, middle, prefill, one, flush=True)
            tried = max(tried, one, key=lambda each: each.get("attainment", 0.0))
        if tried["attainment"] >= USUAL.target:
            workers, found = middle, tried
        else:
            too_few = middle
    return workers, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mean", type=float, default=8.0)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument(
        "--fixed",
        nargs="+",
        choices=("undivided", "bent"),
        default=["undivided", "bent"],
        help="Fleets to compare.",
    )
    parser.add_argument("--out", type=Path, default=Path("build/pd-scaling.json"))
    options = parser.parse_args()
    result = {}
    for kind in options.fixed:
        workers, found = smallest(kind, options)
        result[kind] = {"workers": workers, **found}
    most = 2 * max(each["workers"] for each in result.values())
    scaled = measure(ours(most), options.mean, options.hours)
    saved = {kind: 1 - scaled["gpu_hours"] / each["gpu_hours"] for kind, each in result.items()}
    result |= {"ours": scaled, "saved": saved}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
