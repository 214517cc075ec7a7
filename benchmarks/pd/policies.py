"""Goodput of the ways to divide a fleet of GPUs, on traces that drift: static divisions, the best of them in hindsight, the
one that the first tenth of the trace would have chosen, undivided workers with chunked prefill, thresholds, DOPD's formula,
and ours; static and DOPD also with ours' convertible decode workers.

    make compiled && PYTHONPATH=build/compiled .venv/bin/python benchmarks/pd/policies.py [mix ...] --gpus 8 [--seeds 0 1 2]

An instance is Llama-3.1-70B in FP8 on two H100 (cost model). All ways meet the same arrivals; goodput is the largest mean
rate at which 90 % of all requests meet both limits, by bisection to 4 %. What changes its division starts half and half
and changes roles only (50 ms a flip, requests in flight stay).
"""

import argparse
import json
import time
from pathlib import Path

from traffic import LONG, USUAL, Make, first_tenth, goodput, mooncake, phases, recorded

from mortice.cost import Formats, Layout
from mortice.cost.worker_times import worker_times
from mortice.sim.plan import Plan
from mortice.sim.scenario import pools
from mortice.specs.catalogue import load_hardware, load_model
from mortice.specs.cluster import PolicyName
from mortice.specs.slo import SLO

TIMES = worker_times(
    load_model("llama-3.1-70b"),
    load_hardware("h100"),
    Layout(tp=2),
    Formats(weights="fp8", kv="bf16"),
    longest=32768,
)

# name -> (trace, SLO, block size, first guess of a rate an instance)
CASES: dict[str, tuple[Make, SLO, int, float]] = {
    "mix": (phases("conv", "code", "answers", "conv", "code", "answers"), USUAL, 16, 4.0),
    "code": (recorded("code"), USUAL, 16, 0.5),
    "conv": (recorded("conv"), USUAL, 16, 5.0),
    "mooncake": (mooncake(), LONG, 512, 0.5),
    "synthetic": (mooncake("synthetic"), LONG, 512, 0.5),
    "code-answers-conv": (phases("code", "answers", "conv", "code", "answers", "conv"), USUAL, 16, 4.0),
    "answers-conv-code": (phases("answers", "conv", "code", "answers", "conv", "code"), USUAL, 16, 4.0),
    "conv-then-code": (phases("conv", "code", phase_s=270), USUAL, 16, 4.0),
    "code-then-conv": (phases("code", "conv", phase_s=270), USUAL, 16, 4.0),
    "arxiv-then-conv": (phases("arxiv", "conv", phase_s=270), USUAL, 16, 3.0),
}
CHUNKS = (512, 1024, 2048)


def plan(
    slo: SLO, block_size: int, prefill: int, decode: int, mixed: int = 0, policy: PolicyName = "static",
    *, chunk: int = 1024, convertible: bool = False,
) -> Plan:  # fmt: skip
    return pools(
        TIMES, prefill, decode, mixed, slo=slo, policy=policy, prefill_budget=8192, token_budget=chunk,
        block_size=block_size, convertible=convertible,
    )  # fmt: skip


class Measured:
    """Goodput of every way on one trace and seed, each measured once."""

    def __init__(self, name: str, instances: int, seed: int, found: dict[str, float]) -> None:
        self.name, self.n, self.seed, self.found = name, instances, seed, found
        self.make, self.slo, self.block_size, self.each = CASES[name]

    def of(self, way: str, plan: Plan, *, tenth: bool = False) -> float:
        key = f"{way}, first tenth" if tenth else way
        if key not in self.found:
            began = time.process_time()
            start = self.found.get(way) or self.found.get("mortice") or self.each * self.n
            make = first_tenth(self.make) if tenth else self.make
            self.found[key] = goodput(plan, make, self.seed, self.slo, start)
            spent = time.process_time() - began
            print(
                f"{self.name:18} seed {self.seed} {key:28} {self.found[key]:8.2f} req/s {spent:6.1f} s",
                flush=True,
            )
        return self.found[key]

    def static(self, p: int, *, convertible: bool = False, tenth: bool = False) -> float:
        made = plan(self.slo, self.block_size, p, self.n - p, convertible=convertible)
        return self.of(f"{p}P{self.n - p}D{' convertible' if convertible else ''}", made, tenth=tenth)

    def best_static(self, *, convertible: bool = False, tenth: bool = False) -> int:
        """Prefill instances of the best division: all are tried in a small fleet, in a large one a grid and what lies
        beside its best."""

        def rate(p: int) -> float:
            return self.static(p, convertible=convertible, tenth=tenth)

        stride = max(1, self.n // 8)
        best = max(range(stride, self.n, stride), key=rate)
        while stride > 1:
            stride //= 2
            near = [p for p in (best - stride, best, best + stride) if 0 < p < self.n]
            best = max(near, key=rate)
        return best

    def run(self) -> dict:
        n, half, slo, block = self.n, self.n // 2, self.slo, self.block_size
        ours = self.of("mortice", plan(slo, block, half, n - half, policy="mortice", convertible=True))
        together = max(
            self.of(f"together, {c} tokens a step", plan(slo, block, 0, 0, n, chunk=c)) for c in CHUNKS
        )
        reactive = self.of("reactive", plan(slo, block, half, n - half, policy="reactive"))
        dopd = self.of("dopd", plan(slo, block, half, n - half, policy="dopd"))
        lent = self.of("dopd convertible", plan(slo, block, half, n - half, policy="dopd", convertible=True))
        hindsight = self.best_static()
        early = self.best_static(tenth=True)
        bent = self.best_static(convertible=True)
        rates = {
            "ours": ours,
            "hindsight": self.static(hindsight),
            "hindsight convertible": self.static(bent, convertible=True),
            "first tenth": self.static(early),
            "together": together,
            "reactive": reactive,
            "dopd": dopd,
            "dopd convertible": lent,
        }
        return {
            "trace": self.name,
            "seed": self.seed,
            "divisions": {"hindsight": hindsight, "first tenth": early, "hindsight convertible": bent},
            "rates": rates,
            "ours over": {k: ours / v if v else None for k, v in rates.items() if k != "ours"},
            "all": self.found,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="*", help=f"Of {', '.join(CASES)}; all without.")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--anew", action="append", default=[], help="Measure this way anew; repeatable.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or Path(f"build/pd-policies-{options.gpus}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(out.read_text()) if out.exists() else {}
    for seed in options.seeds:
        for name in options.traces or CASES:
            key = f"{name} {seed}"
            before = {k: v for k, v in results.get(key, {}).get("all", {}).items() if k not in options.anew}
            results[key] = Measured(name, options.gpus // TIMES.gpus, seed, before).run()
            print(json.dumps({"trace": key, "ours over": results[key]["ours over"]}), flush=True)
            out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
