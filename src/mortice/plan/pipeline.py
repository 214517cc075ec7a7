"""The attention-FFN pipeline: how long one decode iteration takes when micro-batches alternate between both sides.

    A   |0|1|2|   |0|1|2|        attention of micro-batches 0, 1, 2, then of the next layer
    A2F   |0|1|2|   |0|1|2|      tokens travel to the experts
    F       |0|1|2|   |0|1|2|    experts
    F2A       |0|1|2|   ...      partial outputs travel back

Inside an FFN instance a gather before the experts and a scatter after them may be resources of their own (copies that
take no compute). Each resource is first in, first out; the two directions of the link are independent (full duplex).
The closed form, which knows only the sum of the times and the largest, is exact for equal micro-batches and equal
layers; `simulate` has neither limit and also knows a link whose two directions share one resource.
"""

import heapq
import math
from collections.abc import Sequence

import msgspec

from mortice.specs.errors import RequestError

RESOURCES = ("attention", "a2f", "gather", "ffn", "scatter", "f2a")


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that one micro-batch of one layer holds each resource."""

    attention_s: float
    a2f_s: float
    ffn_s: float
    f2a_s: float
    gather_s: float = 0.0  # tokens collected inside an FFN instance
    scatter_s: float = 0.0  # its partial outputs reduced

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds >= 0):
                raise RequestError(f"{name} must be 0 seconds or more, not {seconds:g}", param=name)

    @property
    def times(self) -> tuple[float, ...]:
        """In the order of RESOURCES."""
        return (self.attention_s, self.a2f_s, self.gather_s, self.ffn_s, self.scatter_s, self.f2a_s)

    @property
    def total_s(self) -> float:
        """Sigma: one micro-batch through one layer with nobody in its way."""
        return sum(self.times)

    @property
    def slowest_s(self) -> float:
        """M: the time of the busiest resource."""
        return max(self.times)

    @property
    def bottleneck(self) -> str:
        return RESOURCES[self.times.index(self.slowest_s)]


def layer_period_s(stages: Stages, num_micro_batches: int) -> float:
    """Steady seconds a layer: max(m M, Sigma). Exact for equal micro-batches on a duplex link.

    Derived from the FIFO recursion of resources in a ring; StepMesh states the same two inequalities.
    """
    return max(_at_least_one(num_micro_batches) * stages.slowest_s, stages.total_s)


def iteration_s(stages: Stages, num_micro_batches: int, num_layers: int) -> float:
    """Seconds from the first attention to the last return of one iteration over equal layers.

    Resource bound (m M >= Sigma): Sigma + (m L - 1) M. Latency bound: L Sigma + (m - 1) M.
    The first branch is MegaScale-Infer's T_total (arXiv 2504.02263) with Sigma = T_a + T_e + 2 T_c.
    """
    m, slowest = _at_least_one(num_micro_batches), stages.slowest_s
    if num_layers < 1:
        raise RequestError(f"num_layers must be at least 1, not {num_layers}", param="num_layers")
    if m * slowest >= stages.total_s:
        return stages.total_s + (m * num_layers - 1) * slowest
    return num_layers * stages.total_s + (m - 1) * slowest


def stage_budget_s(tpot_s: float, num_layers: int, num_stages: int = 3) -> float:
    """Seconds a stage may take in one layer: TPOT / stages / layers (Step-3, section 3).

    Three stages share one stage between both legs of the link; with four each leg has its own. Step-3 prints 272 us
    for 50 ms and 61 layers; the quotient is 273.2.
    """
    if num_stages not in (3, 4):
        raise RequestError(f"num_stages is 3 or 4, not {num_stages}", param="num_stages")
    return tpot_s / num_stages / num_layers


def fits_budget(stages: Stages, budget_s: float, num_stages: int = 3) -> dict[str, bool]:
    """Which of Step-3's stage conditions hold, by stage name."""
    legs = stages.a2f_s + stages.f2a_s
    held = {"attention": stages.attention_s <= budget_s, "ffn": stages.ffn_s <= budget_s}
    if num_stages == 3:
        return held | {"communication": legs <= budget_s}
    return held | {"a2f": stages.a2f_s <= budget_s, "f2a": stages.f2a_s <= budget_s}


class Interval(msgspec.Struct, frozen=True):
    """One micro-batch of one layer on one resource."""

    resource: str
    micro_batch: int
    layer: int
    start_s: float
    end_s: float


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """What `simulate` saw, in order of start."""

    intervals: tuple[Interval, ...]
    makespan_s: float

    def busy_share(self, resource: str) -> float:
        """Share of the makespan in which the resource worked."""
        busy = sum(i.end_s - i.start_s for i in self.intervals if i.resource == resource)
        return busy / self.makespan_s if self.makespan_s else 0.0


def simulate(
    layers: Sequence[Stages] | Sequence[Sequence[Stages]],
    num_micro_batches: int,
    *,
    half_duplex: bool = False,
) -> Schedule:
    """One iteration, event by event: every resource serves whoever came first.

    `layers[l]` holds the times of layer l, the same for all micro-batches, or one `Stages` a micro-batch.
    `half_duplex`: both directions of the link share one resource.
    """
    m = _at_least_one(num_micro_batches)
    table = [tuple(layer) if not isinstance(layer, Stages) else (layer,) * m for layer in layers]
    if any(len(layer) != m for layer in table):
        raise RequestError(f"a layer needs times for {m} micro-batches", param="layers")
    server = {name: "link" if half_duplex and name in ("a2f", "f2a") else name for name in RESOURCES}
    free_at = dict.fromkeys(server.values(), 0.0)
    # (time, layer, micro-batch, stage): arrivals leave the heap in time order, so each resource serves them in turn.
    arrivals = [(0.0, 0, i, 0) for i in range(m)] if table else []
    heapq.heapify(arrivals)
    intervals = []
    while arrivals:
        at, layer, micro_batch, stage = heapq.heappop(arrivals)
        name = RESOURCES[stage]
        start = max(at, free_at[server[name]])
        end = start + table[layer][micro_batch].times[stage]
        free_at[server[name]] = end
        if end > start:
            intervals.append(Interval(name, micro_batch, layer, start, end))
        if stage < len(RESOURCES) - 1:
            heapq.heappush(arrivals, (end, layer, micro_batch, stage + 1))
        elif layer + 1 < len(table):
            heapq.heappush(arrivals, (end, layer + 1, micro_batch, 0))
    return Schedule(
        intervals=tuple(sorted(intervals, key=lambda i: (i.start_s, i.end_s))),
        makespan_s=max((i.end_s for i in intervals), default=0.0),
    )


def half_duplex_bound_s(stages: Stages, num_micro_batches: int, num_layers: int) -> float:
    """A lower bound for one iteration when both legs share the link; random cases exceed it by up to 59 %, so
    plan with `simulate`."""
    busiest = max(stages.attention_s, stages.ffn_s, stages.a2f_s + stages.f2a_s)
    return max(num_layers * stages.total_s, num_micro_batches * num_layers * busiest)


def _at_least_one(num_micro_batches: int) -> int:
    if num_micro_batches < 1:
        raise RequestError(
            f"num_micro_batches must be at least 1, not {num_micro_batches}", param="num_micro_batches"
        )
    return num_micro_batches
