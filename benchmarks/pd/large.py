"""Attainment of the ways to divide a large fleet, at one rate an instance, on a short trace that drifts.

    make compiled && PYTHONPATH=build/compiled .venv/bin/python benchmarks/pd/large.py --gpus 1000 [--each 4.5] [--phase 30]

No bisection and no search: static divisions keep the shares that were the best in hindsight and the first tenth's choice at
8 GPUs. Phases of long answers, conversation and code, Poisson arrivals. Instances are those of policies.py.
"""

import argparse
import json
import time
from pathlib import Path

from policies import TIMES, plan
from traffic import USUAL, attainment, phases, share_interval

KINDS = ("answers", "conv", "code")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--each", type=float, default=4.5, help="requests a second and instance")
    parser.add_argument("--phase", type=float, default=30.0, help="seconds of a phase")
    parser.add_argument("--hindsight", type=float, default=0.5, help="share of prefill instances")
    parser.add_argument("--tenth", type=float, default=0.25)
    parser.add_argument("--ways", nargs="+", help="Beginnings of the ways to run; all without.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    n = options.gpus // TIMES.gpus
    half = n // 2
    late, early = round(options.hindsight * n), round(options.tenth * n)
    ways = {
        "ours": plan(USUAL, 16, half, n - half, policy="mortice", convertible=True),
        f"static {late}P{n - late}D": plan(USUAL, 16, late, n - late),
        f"static {late}P{n - late}D convertible": plan(USUAL, 16, late, n - late, convertible=True),
        f"static {early}P{n - early}D": plan(USUAL, 16, early, n - early),
        "together, 1024 tokens a step": plan(USUAL, 16, 0, 0, n, chunk=1024),
        "dopd": plan(USUAL, 16, half, n - half, policy="dopd"),
    }
    rate = options.each * n
    trace = phases(*KINDS, phase_s=options.phase)(rate, 0)
    found = {"gpus": options.gpus, "rate": rate, "requests": len(trace.requests), "attainment": {}}
    out = options.out or Path(f"build/pd-large-{options.gpus}.json")
    for way, made in ways.items():
        if options.ways and not way.startswith(tuple(options.ways)):
            continue
        began = time.process_time()
        share, cluster = attainment(made, trace, rate, USUAL, give_up=False)
        low, high = share_interval(share * len(trace.requests), len(trace.requests))
        found["attainment"][way] = share
        spent = time.process_time() - began
        print(
            f"{way:32} {share:.4f} ({low:.4f} to {high:.4f}), {spent:.0f} s CPU, "
            f"{sum(len(d.actions) for d in cluster.decisions)} flips",
            flush=True,
        )
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
