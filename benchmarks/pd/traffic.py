"""Traces that drift, and goodput on them: what the P/D benchmarks share.

Of a trace as it was recorded, the time is scaled to the rate. Of a trace that is put together from phases, the phases keep
their length and the rate is that of Poisson arrivals; the lengths of a phase are a recorded trace's, in their own order.
"""

import csv
import gc
import gzip
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle, islice
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
USUAL, LONG = SLO(ttft_ms=1000, tpot_ms=50), SLO(ttft_ms=10_000, tpot_ms=100)
LONGEST = 32_768
JOSTLE = 50  # neighbours among whom another seed deals the lengths anew

Make = Callable[[float, int], Trace]  # a trace at a mean rate, by seed


@cache
def azure(name: str) -> Trace:
    return read_trace(SHARED / f"azure2023_{name}.csv.gz")


def recorded(name: str) -> Make:
    """An Azure trace with its own arrivals. Seed 0: as it is; another deals lengths anew among 50 neighbours."""

    def make(rate: float, seed: int) -> Trace:
        rows = list(azure(name).requests)
        if seed:
            rng = np.random.default_rng(seed)
            for start in range(0, len(rows), JOSTLE):
                near = rows[start : start + JOSTLE]
                dealt = rng.permutation(len(near))
                rows[start : start + JOSTLE] = [
                    TraceRequest(row.at_s, near[i].prompt_len, near[i].output_len)
                    for row, i in zip(near, dealt, strict=True)
                ]
        return Trace(name=name, format="azure", requests=tuple(rows))

    return make


@cache
def _mooncake(name: str, seed: int) -> Trace:
    trace = read_trace(SHARED / f"mooncake_fast25_{name}.jsonl.gz")
    if name == "conversation":  # its clock ticks every 3 s
        trace = trace.moved(np.random.default_rng(seed).uniform(0, 3.0, len(trace.requests)).tolist())
    elif seed:
        trace = trace.moved(np.random.default_rng(seed).uniform(0, 1.0, len(trace.requests)).tolist())
    kept = tuple(r for r in trace.requests if r.prompt_len + r.output_len <= LONGEST)
    return msgspec.structs.replace(trace, requests=kept)


def mooncake(name: str = "conversation") -> Make:
    """Requests beyond 32,768 tokens are left out (1 in 13 of the conversations)."""
    return lambda rate, seed: _mooncake(name, seed)


# -- phases ------------------------------------------------------------------------------------------------------------

Lengths = list[tuple[int, int]]


@cache
def _lengths(kind: str) -> Lengths:
    if kind in ("conv", "code"):
        return [(r.prompt_len, r.output_len) for r in azure(kind).requests]
    if kind == "arxiv":
        with gzip.open(SHARED / "vidur_arxiv_summ_lengths.csv.gz", "rt") as file:
            return [
                (int(row["num_prefill_tokens"]), int(row["num_decode_tokens"]))
                for row in csv.DictReader(file)
            ]
    rng = np.random.default_rng(
        20
    )  # answers: short questions, long answers; no recorded trace of that kind is at hand
    return [
        (int(rng.lognormal(5.3, 0.6)) + 1, min(2000, int(rng.lognormal(6.4, 0.5)) + 1)) for _ in range(20_000)
    ]


def phases(*kinds: str, phase_s: float = 90.0) -> Make:
    """One phase of `phase_s` after the other, Poisson arrivals of one rate throughout: only the lengths drift. Each phase
    reads its recorded lengths on from where it left them, at a place that the seed draws."""

    def make(rate: float, seed: int) -> Trace:
        rng = np.random.default_rng(seed)
        sources: dict[str, Iterator[tuple[int, int]]] = {}
        for kind in sorted(set(kinds)):
            start = int(rng.integers(len(_lengths(kind))))
            sources[kind] = islice(cycle(_lengths(kind)), start, None)
        rows, at = [], 0.0
        while at < phase_s * len(kinds):
            rows.append(TraceRequest(at, *next(sources[kinds[int(at // phase_s)]])))
            at += float(rng.exponential(1 / rate))
        return Trace(name=" ".join(kinds), format="azure", requests=tuple(rows))

    return make


# -- runs --------------------------------------------------------------------------------------------------------------


def requests_at(trace: Trace, rate: float) -> list[SimRequest]:
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


def goodput(plan: Plan, make: Make, seed: int, slo: SLO, start: float, step: float = 0.04) -> float:
    """Largest mean rate that meets the target, by bisection to `step`."""
    low, high, rate = 0.0, math.inf, start
    while math.isinf(high) or high - low > step * high:
        if attainment(plan, make(rate, seed), rate, slo)[0] >= slo.target:
            low = rate
        else:
            high = rate
        if math.isinf(high):
            rate *= 1.25
        elif low == 0:
            rate /= 1.3
            if rate < start / 100:
                return 0.0
        else:
            rate = (low + high) / 2
    return low


def first_tenth(make: Make) -> Make:
    """The first tenth of a trace's own time."""

    def cut(rate: float, seed: int) -> Trace:
        trace = make(rate, seed)
        return trace.until(trace.requests[-1].at_s / 10)

    return cut


__all__: Sequence[str] = (
    "LONG",
    "USUAL",
    "Make",
    "attainment",
    "azure",
    "first_tenth",
    "goodput",
    "mooncake",
    "phases",
    "recorded",
    "requests_at",
    "share_interval",
)
