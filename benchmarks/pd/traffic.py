"""Traces that drift, and goodput on them: what the P/D benchmarks share."""

import gc
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from mortice.sim.cluster import Cluster, Plan
from mortice.sim.report import met
from mortice.sim.request import SimRequest
from mortice.sim.summary import share_interval
from mortice.specs.slo import SLO
from mortice.specs.workload import Trace, TraceRequest, read_trace

SHARED = Path(__file__).parents[2].parent / "shared" / "traces"
PHASE_S = 90.0  # of the drifting mix, whatever its rate


def azure(name: str) -> Trace:
    return read_trace(SHARED / f"azure2023_{name}.csv.gz")


def mooncake(seed: int = 0) -> Trace:
    """The conversation trace with its 3-second tick undone, requests beyond 32,768 tokens left out (1 in 13)."""
    trace = read_trace(SHARED / "mooncake_fast25_conversation.jsonl.gz")
    draws = np.random.default_rng(seed).uniform(0, 3.0, len(trace.requests))
    trace = trace.moved(draws.tolist())
    kept = tuple(r for r in trace.requests if r.prompt_len + r.output_len <= 32_768)
    return msgspec.structs.replace(trace, requests=kept)


def mix(rate: float = 10.0, seed: int = 0) -> Trace:
    """Phases of 90 s: Azure conv lengths, Azure code lengths, short questions with long answers, and the same again;
    Poisson. The length of the answers moves thirtyfold while the rate stays."""
    rng = np.random.default_rng(seed)
    conv, code = azure("conv").requests, azure("code").requests
    rows: list[TraceRequest] = []
    at = 0.0
    while at < 6 * PHASE_S:
        phase = int(at // PHASE_S) % 3
        if phase == 2:
            prompt, output = int(rng.lognormal(5.3, 0.6)) + 1, min(2000, int(rng.lognormal(6.4, 0.5)) + 1)
        else:
            one = (conv, code)[phase][rng.integers(0, len((conv, code)[phase]))]
            prompt, output = one.prompt_len, one.output_len
        rows.append(TraceRequest(at, prompt, output))
        at += float(rng.exponential(1 / rate))
    return Trace(name="drifting mix", format="azure", requests=tuple(rows))


def requests_at(trace: Trace, rate: float, block_size: int = 16) -> list[SimRequest]:
    """The trace's arrivals, its time scaled so that the mean rate is `rate`."""
    factor = rate / trace.mean_rate
    made = []
    for i, row in enumerate(trace.requests):
        names = (
            [b.to_bytes(8, "big") for b in row.blocks[: row.prompt_len // 512]] if trace.block_tokens else []
        )
        made.append(SimRequest(i, row.at_s / factor, row.prompt_len, row.output_len, names))
    return made


def attainment(
    plan: Plan, trace: Trace, rate: float, slo: SLO, *, give_up: bool = True
) -> tuple[float, Cluster]:
    """Share of all requests within the SLO; a run that has lost already is given up, its share then a bound."""
    requests = requests_at(trace, rate)
    allowed = (1 - slo.target) * len(requests)
    gc.disable()
    cluster = Cluster(plan, requests)
    end, at = requests[-1].arrival_s, 0.0
    while at < end:
        at += end / 20
        cluster.run(until_s=at)
        ended = [r for r in requests[: cluster.num_arrived] if r.stage in ("finished", "rejected")]
        missed = sum(not all(met(r, slo)) for r in ended)
        late = sum(
            slo.ttft_ms is not None and math.isnan(r.first_s) and (at - r.arrival_s) * 1e3 > slo.ttft_ms
            for r in requests[: cluster.num_arrived]
        )
        if give_up and missed + late > 1.2 * allowed + 10:
            gc.enable()
            return 1 - (missed + late) / len(requests), cluster
    cluster.run()
    gc.enable()
    return sum(all(met(r, slo)) for r in requests) / len(requests), cluster


def goodput(plan: Plan, trace: Trace, slo: SLO, start: float, step: float = 0.04) -> float:
    """Largest mean rate that meets the target, by bisection to `step`."""
    low, high, rate = 0.0, math.inf, start
    while math.isinf(high) or high - low > step * high:
        if attainment(plan, trace, rate, slo)[0] >= slo.target:
            low = rate
        else:
            high = rate
        if math.isinf(high):
            rate *= 1.3
        elif low == 0:
            rate /= 1.4
            if rate < start / 100:
                return 0.0
        else:
            rate = (low + high) / 2
    return low


def interval(trace: Trace, share: float) -> tuple[float, float]:
    return share_interval(share * len(trace.requests), len(trace.requests))


def first_tenth(trace: Trace) -> Trace:
    """The first tenth of the trace's own time."""
    return trace.until(trace.requests[-1].at_s / 10)


__all__: Sequence[str] = (
    "attainment",
    "azure",
    "first_tenth",
    "goodput",
    "interval",
    "mix",
    "mooncake",
    "requests_at",
)
