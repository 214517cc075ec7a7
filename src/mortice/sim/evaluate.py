"""How good a plan is: attainment at a rate, and the largest rate that keeps the target, by simulation under common luck.

All plans meet the same arrivals (the gaps of one draw, scaled to the rate) and the same lengths in the same order, so that
a difference between two is the plans', not the draw's. A run starts empty: its first quarter warms it up and is not judged.
It is given up as soon as so many requests have missed that the target is out of reach.
"""

import gc
import math
from collections.abc import Sequence

import msgspec
import numpy as np

from mortice.sched.capacity import Capacity
from mortice.sched.observation import Demand
from mortice.sim.cluster import Cluster, Plan
from mortice.sim.report import met
from mortice.sim.request import SimRequest
from mortice.sim.summary import share_interval
from mortice.specs.slo import SLO
from mortice.specs.workload import TraceRequest

LOOK_S = 0.1  # of the run: how often a run looks whether it is lost
WARM_UP = 0.25  # of the requests


class Sample(msgspec.Struct, frozen=True):
    """Lengths in the order in which they arrive, and unit gaps: arrival i is at sum(gaps[:i + 1]) / rate seconds."""

    prompt_len: tuple[int, ...]
    output_len: tuple[int, ...]
    gaps: tuple[float, ...]

    def at(self, rate: float) -> list[SimRequest]:
        times = np.cumsum(self.gaps) / rate
        rows = zip(times.tolist(), self.prompt_len, self.output_len, strict=True)
        return [SimRequest(i, t, p, o, []) for i, (t, p, o) in enumerate(rows)]

    def demand(self, rate: float) -> Demand:
        prompts, outputs = np.asarray(self.prompt_len, float), np.asarray(self.output_len, float)
        return Demand(
            rate=rate,
            prompt_mean=float(prompts.mean()),
            uncached_mean=float(prompts.mean()),
            uncached_square=float((prompts**2).mean()),
            output_mean=float(outputs.mean()),
            source="trace",
        )


def draw(requests: Sequence[TraceRequest], count: int, seed: int) -> Sample:
    """`count` requests of the trace's length pairs, drawn with replacement, Poisson arrivals."""
    rng = np.random.default_rng(seed)
    picked = rng.integers(0, len(requests), count)
    return Sample(
        tuple(requests[i].prompt_len for i in picked),
        tuple(requests[i].output_len for i in picked),
        tuple(rng.exponential(1.0, count).tolist()),
    )


class Score(msgspec.Struct, frozen=True):
    """Share of requests within the SLO, its interval of 95 %, and whether the run was given up (then a bound)."""

    attainment: float
    low: float
    high: float
    given_up: bool = False


def attainment_at(plan: Plan, sample: Sample, rate: float, slo: SLO, *, give_up: bool = True) -> Score:
    """Simulate the sample at a rate. Without `give_up` the run goes to its end whatever it misses."""
    requests = sample.at(rate)
    num = len(requests)
    judged = requests[int(WARM_UP * num) :]
    num = len(judged)
    allowed = num * (1 - slo.target)
    was_on = gc.isenabled()
    gc.disable()  # no cycles that outlive the run are made, and looking for them costs a tenth
    try:
        cluster = Cluster(plan, requests)
        span_s = requests[-1].arrival_s
        at_s = 0.0
        while give_up and at_s < 1.5 * span_s:
            at_s += LOOK_S * span_s
            cluster.run(until_s=at_s)
            missed = sum(_is_lost(r, slo, at_s) for r in judged)
            if missed > 1.5 * allowed + 10:
                return Score(1 - missed / num, *share_interval(num - missed, num), given_up=True)
        cluster.run()
    finally:
        if was_on:
            gc.enable()
    good = sum(all(met(r, slo)) for r in judged)
    return Score(good / num, *share_interval(good, num))


def _is_lost(request: SimRequest, slo: SLO, now_s: float) -> bool:
    if request.stage == "finished":
        return not all(met(request, slo))
    if request.arrival_s > now_s or slo.ttft_ms is None:
        return False
    first = request.first_s if not math.isnan(request.first_s) else now_s
    return (first - request.arrival_s) * 1e3 > slo.ttft_ms


def carried(plan: Plan, sample: Sample) -> float:
    """Rate that the plan carries by the closed forms of sched/capacity.py; what the search starts from."""
    setup = plan.setup
    if setup.prefill_times is None or setup.decode_times is None:
        return 0.0
    capacity = Capacity(
        prefill=setup.prefill_times, decode=setup.decode_times, slo=setup.slo, token_budget=setup.token_budget
    )
    demand = sample.demand(1.0)
    return capacity.divided_rate(plan.prefill, plan.decode, demand) + capacity.mixed_rate(plan.mixed, demand)


class Goodput(msgspec.Struct, frozen=True):
    """Largest rate at which the target was met, the smallest found at which it was not, and runs that it took."""

    rate: float
    above: float
    runs: int


def goodput(plan: Plan, sample: Sample, slo: SLO, *, start: float, step: float = 0.03) -> Goodput:
    """Bisection from a guess, to `step` of the rate. Response need not be monotone: what is answered was met itself."""
    if start <= 0:
        return Goodput(0.0, 0.0, 0)
    low, high, runs = 0.0, math.inf, 0
    rate = start
    while (high - low) > step * high or math.isinf(high):
        runs += 1
        if attainment_at(plan, sample, rate, slo).attainment >= slo.target:
            low = rate
        else:
            high = rate
        if math.isinf(high):
            if rate > 20 * start:
                break  # the sample is over before a queue can build: it says no more than this
            rate *= 1.25
        elif low == 0.0:
            rate /= 1.35
            if rate < start / 60:
                return Goodput(0.0, high, runs)
        else:
            rate = (low + high) / 2
    return Goodput(low, high, runs)
