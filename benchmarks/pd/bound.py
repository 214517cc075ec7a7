"""What no policy of equal GPUs can pass: the largest mean rate at which the work of the cheapest 90 % of the requests fits
into the time that there is, on all workers, whatever they do and whoever foresees it.

    .venv/bin/python benchmarks/pd/bound.py [mix ...] [--results build/pd-policies-8.json]

A relaxation. A prompt costs its own arithmetic and no step's base; what an infinite cache has is free. A token costs its
sequence, its context and the share of a step's base that its context is of all memory. Work is divided without loss, roles
change for nothing. For windows of several lengths: prompts that arrive in one must be computed by its end and the TTFT
limit, answers by the TPOT limit after that; as many requests as it takes are given up, the costliest first.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from policies import CASES, TIMES
from traffic import Make

from mortice.specs.slo import SLO
from mortice.specs.workload import Trace

WINDOWS_S = (1.0, 3.0, 10.0, 30.0, 90.0, 270.0, 1e9)


def uncached(trace: Trace) -> list[int]:
    """Prompt tokens that no cache can have, the last included."""
    seen: set[int] = set()
    tokens = []
    for row in trace.requests:
        hit = next((i for i, block in enumerate(row.blocks) if block not in seen), len(row.blocks))
        seen.update(row.blocks)
        tokens.append(max(1, row.prompt_len - hit * trace.block_tokens))
    return tokens


def work(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Least seconds of a worker that each request's prompt and answer take."""
    t = TIMES
    prompts = np.array([r.prompt_len for r in trace.requests], float)
    outputs = np.array([r.output_len for r in trace.requests], float)
    new = np.array(uncached(trace), float)
    prefill = t.prefill_token_s * new + t.prefill_square_s * (prompts**2 - (prompts - new) ** 2)
    context = prompts + outputs / 2
    token = t.decode_sequence_s + (t.decode_context_s + t.decode_base_s / t.kv_tokens) * context
    return prefill, (outputs - 1) * token


def given_up(work_s: np.ndarray, room_s: float) -> int:
    """Fewest requests without which the rest fits."""
    return len(work_s) - int(np.searchsorted(np.cumsum(np.sort(work_s)), room_s, side="right"))


def missed(trace: Trace, rate: float, workers: int, slo: SLO) -> float:
    """Least share of requests that miss."""
    assert slo.ttft_ms is not None
    assert slo.tpot_ms is not None
    prefill, decode = work(trace)
    outputs = np.array([r.output_len for r in trace.requests], float)
    at = np.array([r.at_s for r in trace.requests]) * trace.mean_rate / rate
    worst = 0
    for window_s in WINDOWS_S:
        part = (at // window_s).astype(int)
        edges = np.flatnonzero(np.diff(part, prepend=-1, append=part[-1] + 1))
        lost = 0
        for low, high in pairwise(edges):
            lasts = min(window_s, at[-1] - at[0]) + slo.ttft_ms / 1e3
            late = given_up(prefill[low:high], workers * lasts)
            ends = lasts + outputs[low:high].max() * slo.tpot_ms / 1e3
            lost += max(late, given_up(prefill[low:high] + decode[low:high], workers * ends))
        worst = max(worst, lost)
    return worst / len(at)


def bound(make: Make, seed: int, slo: SLO, workers: int) -> float:
    """Rate above which the target cannot be met, to 1 %."""
    low, high = 0.0, 1.0
    while missed(make(high, seed), high, workers, slo) <= 1 - slo.target:
        low, high = high, 2 * high
    while high - low > 0.01 * high:
        rate = (low + high) / 2
        low, high = (
            (rate, high) if missed(make(rate, seed), rate, workers, slo) <= 1 - slo.target else (low, rate)
        )
    return high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="*")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path("build/pd-policies-8.json"))
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    for name in options.traces or CASES:
        make, slo, _, _ = CASES[name]
        for seed in options.seeds:
            most = bound(make, seed, slo, options.gpus // TIMES.gpus)
            rates = results[f"{name} {seed}"]["rates"]
            early, ours = rates["first tenth"], rates["ours"]
            print(
                f"{name:18} seed {seed} at most {most:6.2f} req/s, {most / early:.2f} times the first tenth's choice; "
                f"ours {ours / early:.2f} times it",
                flush=True,
            )


if __name__ == "__main__":
    main()
