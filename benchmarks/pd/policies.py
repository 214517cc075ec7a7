"""Goodput of the ways to divide eight instances, on traces that drift: every static division, the best of them in
hindsight, the one that the first tenth of the trace would have chosen, undivided workers with chunked prefill, DOPD's
formula, and ours.

    .venv/bin/python benchmarks/pd/policies.py [mix conv code mooncake] [--out build/pd-policies.json]

Instances are Llama-3.1-70B in FP8 on two H100 (cost model). All ways meet the same arrivals; goodput is the largest mean
rate at which 90 % of all requests meet both limits, by bisection to 4 %; a trace's own time is scaled to the rate, the mix
keeps its phases of 90 s. DOPD and ours start at four and four and change roles only (50 ms a flip, requests in flight stay).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import traffic

from mortice.cost import Formats, Layout
from mortice.cost.worker_times import worker_times
from mortice.sim.cluster import Plan
from mortice.sim.scenario import pools
from mortice.specs.catalogue import load_hardware, load_model
from mortice.specs.slo import SLO
from mortice.specs.workload import Trace

INSTANCES = 8
TIMES = worker_times(
    load_model("llama-3.1-70b"),
    load_hardware("h100"),
    Layout(tp=2),
    Formats(weights="fp8", kv="bf16"),
    longest=32768,
)
USUAL, LONG = SLO(ttft_ms=1000, tpot_ms=50), SLO(ttft_ms=10_000, tpot_ms=100)

# name -> (trace at a rate, SLO, block size, first guess of a rate)
CASES: dict[str, tuple[Callable[[float], Trace], SLO, int, float]] = {
    "mix": (traffic.mix, USUAL, 16, 30.0),
    "conv": (lambda _: traffic.azure("conv"), USUAL, 16, 40.0),
    "code": (lambda _: traffic.azure("code"), USUAL, 16, 4.0),
    "mooncake": (lambda _: traffic.mooncake(), LONG, 512, 3.0),
}


def ways(slo: SLO, block_size: int) -> dict[str, Plan]:
    def made(
        prefill: int, decode: int, mixed: int, policy: str, chunk: int, convertible: bool = False
    ) -> Plan:
        return pools(
            TIMES, prefill, decode, mixed, slo=slo, policy=policy, prefill_budget=8192, token_budget=chunk,  # type: ignore[arg-type]
            block_size=block_size, convertible=convertible,
        )  # fmt: skip

    found = {
        f"static {p}P{INSTANCES - p}D": made(p, INSTANCES - p, 0, "static", 1024)
        for p in range(2, INSTANCES - 1)
    }
    found |= {f"together, {c} tokens a step": made(0, 0, INSTANCES, "static", c) for c in (512, 1024)}
    found["reactive"] = made(4, 4, 0, "reactive", 1024)
    found["dopd"] = made(4, 4, 0, "dopd", 1024)
    found["mortice"] = made(4, 4, 0, "mortice", 1024, convertible=True)
    return found


def goodput(plan: Plan, make: Callable[[float], Trace], slo: SLO, start: float) -> float:
    """As traffic.goodput; a trace that is made for its rate is made anew for each."""
    low, high, rate = 0.0, float("inf"), start
    while high == float("inf") or high - low > 0.04 * high:
        if traffic.attainment(plan, make(rate), rate, slo)[0] >= slo.target:
            low = rate
        else:
            high = rate
        if high == float("inf"):
            rate *= 1.25
        elif low == 0:
            rate /= 1.3
            if rate < start / 100:
                return 0.0
        else:
            rate = (low + high) / 2
    return low


def run(name: str, only: list[str], before: dict) -> dict:
    """`only`: ways to measure anew; the others stay as they were found `before`."""
    make, slo, block_size, start = CASES[name]
    found: dict[str, float] = before.get("goodput", {})
    tenth: dict[str, float] = before.get("tenth", {})
    for way, plan in ways(slo, block_size).items():
        if only and way not in only:
            continue
        began = time.process_time()
        found[way] = goodput(plan, make, slo, found.get("mortice", start))
        if way.startswith("static"):
            tenth[way] = goodput(
                plan, lambda rate: traffic.first_tenth(make(rate)), slo, max(found[way], start / 4)
            )
        start = found[way] or start
        print(
            f"{name:9} {way:26} {found[way]:7.2f} req/s   {time.process_time() - began:6.1f} s CPU",
            flush=True,
        )
    if not tenth or "dopd" not in found:
        return {"trace": name, "goodput": found, "tenth": tenth}
    static = {way: rate for way, rate in found.items() if way.startswith("static")}
    hindsight, early = max(static, key=lambda w: static[w]), max(tenth, key=lambda w: tenth[w])
    together = max(rate for way, rate in found.items() if way.startswith("together"))
    ours = found["mortice"]
    return {
        "trace": name,
        "slo": [slo.ttft_ms, slo.tpot_ms],
        "goodput": found,
        "tenth": tenth,
        "hindsight": hindsight,
        "first_tenth": early,
        "ours_over_hindsight": ours / max(1e-9, static[hindsight]),
        "ours_over_first_tenth": ours / max(1e-9, static[early]),
        "ours_over_together": ours / max(1e-9, together),
        "ours_over_dopd": ours / max(1e-9, found["dopd"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="*", default=list(CASES), choices=[*CASES, []])
    parser.add_argument("--out", type=Path, default=Path("build/pd-policies.json"))
    parser.add_argument("--only", action="append", default=[], help="Measure only this way anew; repeatable.")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.traces:
        results[name] = run(name, options.only, results.get(name, {}))
        print(
            json.dumps({k: v for k, v in results[name].items() if k not in ("goodput", "tenth")}), flush=True
        )
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
