"""How many workers of each role: static, reactive thresholds, DOPD's formula, and ours on queueing theory.

A policy answers with the target it wants and the best it did not take. Whether the target is gone for, and how, is the
controller's.
"""

import math
from typing import Protocol

import msgspec

from mortice.sched.capacity import Capacity, dopd_block_concurrency, dopd_ratio
from mortice.sched.observation import Demand, Observation, Target
from mortice.specs.cluster import PolicyName


class Scope(msgspec.Struct, frozen=True):
    """What a policy may choose among: a fixed number of workers to divide, or up to `most` workers."""

    workers: int  # that stand or start now
    most: int
    can_scale: bool
    margin: float = 0.0  # by so much of a rate a closed form may be wrong
    is_late: bool = False  # requests miss the SLO

    def divide(self, ratio: float) -> Target:
        """All workers of a fixed fleet in the ratio n_P / n_D, at least one of each where there are two."""
        if self.workers < 2:
            return Target(0, self.workers)
        prefill = round(self.workers * ratio / (1 + ratio))
        prefill = min(max(1, prefill), self.workers - 1)
        return Target(prefill, self.workers - prefill)


class Policy(Protocol):
    def target(self, demand: Demand, seen: Observation, now: Target, scope: Scope) -> tuple[Target, Target]:
        """(wanted, best not taken). `now` is what stands and starts."""


class Static:
    """Leaves everything as it is."""

    def target(self, demand: Demand, seen: Observation, now: Target, scope: Scope) -> tuple[Target, Target]:
        return msgspec.structs.replace(now, reason="static"), now


class Reactive:
    """Thresholds, as Dynamo's load planner has them: KV use 0.9 up and 0.5 down, queued prompts a worker 5 up and 0.2 down;
    after a decode worker was added none is removed for three intervals. A fixed fleet moves one worker at a time."""

    def __init__(self) -> None:
        self._grace = 0

    def target(self, demand: Demand, seen: Observation, now: Target, scope: Scope) -> tuple[Target, Target]:
        self._grace = max(0, self._grace - 1)
        queue = seen.num_prefilling / max(1, now.prefill + now.mixed)
        up_p, down_p = queue > 5.0, queue < 0.2
        up_d, down_d = seen.kv_use > 0.9, seen.kv_use < 0.5
        p, d = now.prefill, now.decode
        if scope.can_scale:
            survivors = seen.kv_use * d / max(1, d - 1)
            p += up_p - (down_p and p > 1)
            d += up_d - (down_d and not self._grace and d > 1 and survivors < 0.9)
        elif up_p and not up_d and d > 1:
            p, d = p + 1, d - 1
        elif up_d and not up_p and p > 1 and not self._grace:
            p, d = p - 1, d + 1
        if d > now.decode:
            self._grace = 3
        why = f"queue {queue:.1f} a prefill worker, KV {seen.kv_use:.2f}"
        return msgspec.structs.replace(now, prefill=p, decode=d, reason=why), now


class Dopd:
    """n_D = ceil(N_D / cc_d) with N_D the predicted requests in decode, n_P = ceil(ratio n_D) (DOPD, section on the P/D
    ratio; the algebra follows its released code)."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity

    def target(self, demand: Demand, seen: Observation, now: Target, scope: Scope) -> tuple[Target, Target]:
        ratio, concurrency = dopd_ratio(
            self.capacity.prefill, self.capacity.decode, self.capacity.slo, demand
        )
        why = f"ratio {ratio:.2f}, {concurrency} a decode worker"
        if not scope.can_scale:
            return msgspec.structs.replace(scope.divide(ratio), reason=why), now
        context = demand.prompt_mean + demand.output_mean / 2
        step = self.capacity.decode.decode_s(concurrency, concurrency * context) * max(1.0, seen.slowdown)
        resident = demand.rate * demand.output_mean * step  # Little's law
        decode = max(1, math.ceil(resident / concurrency))
        return Target(max(1, math.ceil(ratio * decode)), decode, reason=why), now


class DopdReleased:
    """What the released planner computes: n_P = ceil(ratio), the ratio of one decode worker taken for a count, and n_D from
    the requests of an interval taken for a concurrency. Kept for comparison; where it divides by nothing it stays."""

    def __init__(self, capacity: Capacity, block_size: int = 128) -> None:
        self.capacity, self.block_size = capacity, block_size

    def target(self, demand: Demand, seen: Observation, now: Target, scope: Scope) -> tuple[Target, Target]:
        if demand.output_mean <= 0 or demand.prompt_mean <= 0:
            return msgspec.structs.replace(now, reason="no lengths"), now
        blocks = self.capacity.decode.kv_tokens // self.block_size
        concurrency = max(
            1, dopd_block_concurrency(demand.prompt_mean, demand.output_mean, blocks, self.block_size)
        )
        context = demand.prompt_mean + demand.output_mean / 2
        step = self.capacity.decode.decode_s(concurrency, concurrency * context) * max(0.1, seen.slowdown)
        ratio = (
            concurrency * self.capacity.prefill.prefill_s(demand.prompt_mean) / (demand.output_mean * step)
        )
        prefill = max(1, math.ceil(ratio))
        decode = max(1, math.ceil(demand.rate * seen.interval_s / concurrency))
        why = f"ratio {ratio:.2f}, {concurrency} a decode worker"
        if not scope.can_scale:
            return msgspec.structs.replace(scope.divide(prefill / decode), reason=why), now
        return Target(prefill, decode, reason=why), now


class Mortice:
    """The division, or none, that carries the most of the expected mix within the SLO, its decode workers bending to prompts
    that would be late; where workers can be started and stopped, the fewest that carry it."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity

    def target(self, demand: Demand, seen: Observation, now: Target, scope: Scope) -> tuple[Target, Target]:
        if demand.prompt_mean <= 0:
            return msgspec.structs.replace(now, reason="no lengths yet"), now
        if not scope.can_scale:
            return self._divide(scope.workers, demand)
        return self._divide(self._size(demand, scope), demand)

    def _size(self, demand: Demand, scope: Scope) -> int:
        """The fewest workers that carry the load. Where those that stand fall short by less than the closed form may be
        wrong, what is seen decides: none is added while requests are in time."""
        # No margin on top: what is carried holds at the target's quantile, what is expected is a quantile of the forecast.
        low, high = 0, max(1, scope.most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if self._divide(middle, demand)[0].score >= demand.rate else (middle, high)
            )
        if 0 < scope.workers < high and not scope.is_late:
            carried = self._divide(scope.workers, demand)[0].score
            return scope.workers if carried * (1 + scope.margin) >= demand.rate else high
        return high

    def score(self, target: Target, demand: Demand) -> float:
        """Rate that a division carries."""
        return self.capacity.bent_rate(target.prefill, target.decode + target.mixed, demand)

    def _divide(self, workers: int, demand: Demand) -> tuple[Target, Target]:
        """(the division that carries the most, the next best)."""
        rates = self.capacity.bent_rates(workers, demand)
        best, *others = sorted(rates, key=lambda p: (-rates[p], p))
        made = [self._named(p, workers, rates[p]) for p in (best, others[0] if others else best)]
        return made[0], made[1]

    def _named(self, prefill: int, workers: int, rate: float) -> Target:
        if prefill == 0:
            return Target(0, 0, workers, f"undivided carries {rate:.3g}/s", rate)
        return Target(prefill, workers - prefill, 0, f"the cut carries {rate:.3g}/s", rate)


def policy(name: PolicyName, capacity: Capacity) -> Policy:
    made: dict[PolicyName, Policy] = {
        "static": Static(),
        "reactive": Reactive(),
        "dopd": Dopd(capacity),
        "dopd-released": DopdReleased(capacity),
        "mortice": Mortice(capacity),
    }
    return made[name]
