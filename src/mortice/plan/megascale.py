"""MegaScale-Infer's model of disaggregated experts (arXiv 2504.02263): micro-batches, balance, memory, search."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import product

import msgspec

from mortice.plan.pipeline import Stages, iteration_s
from mortice.specs.errors import RequestError

# (price, GB, GB/s, TFLOP/s), price normalised to an L20; table of the paper.
HARDWARE: Mapping[str, tuple[float, float, float, float]] = {
    "l20": (1.00, 48, 864, 119.5),
    "h800": (5.28, 80, 3430.4, 989),
    "a800": (2.26, 80, 2039, 312),
    "h20": (1.85, 96, 4096, 148),
    "l40s": (1.08, 48, 864, 362),
}


def per_price(hardware: str) -> tuple[float, float, float]:
    """Capacity (GB), bandwidth (GB/s) and TFLOP/s per unit of price: what attention and experts each want most of."""
    price, *rest = HARDWARE[hardware]
    capacity, bandwidth, tflops = (value / price for value in rest)
    return capacity, bandwidth, tflops


def micro_batches_needed(attention_s: float, experts_s: float, link_s: float) -> int:
    """Smallest m with m T_f >= 2 (T_f + T_c), T_f = max(T_a, T_e).

    Three where T_c < T_f / 2, four at most where T_c < T_f; beyond that the link, not the pipeline, is the limit.
    """
    slowest = max(attention_s, experts_s)
    if slowest <= 0:
        raise RequestError("attention_s or experts_s must be above 0", param="attention_s")
    return math.ceil(2 * (1 + link_s / slowest) - 1e-12)


def total_s(
    attention_s: float, experts_s: float, link_s: float, micro_batches: int, num_layers: int
) -> float:
    """T_total = (T_a + T_e + 2 T_c) + T_f (m L - 1): the resource-bound branch of `pipeline.iteration_s`."""
    slowest = max(attention_s, experts_s)
    return attention_s + experts_s + 2 * link_s + slowest * (micro_batches * num_layers - 1)


def expert_utilisation(batch: float, top_k: int, num_experts: int, flops_per_byte: float) -> float:
    """min(k/E b BW / FLOPS, 1): share of peak that an expert's product reaches with a decode batch of b."""
    return min(top_k / num_experts * batch / flops_per_byte, 1.0)


class Linear(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds = slope * tokens + fixed, of one layer on one instance with its tensor parallelism."""

    slope_s: float
    fixed_s: float

    def at(self, tokens: float) -> float:
        return self.slope_s * tokens + self.fixed_s


def attention_instances(attention: Linear, experts: Linear, num_experts: int, top_k: int) -> float:
    """n_a = k1 E / (k3 K): attention instances that keep the experts exactly busy (slopes only)."""
    return attention.slope_s * num_experts / (experts.slope_s * top_k)


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One role's hardware: GPUs a node, time of a layer by tensor parallelism, network and price of a GPU."""

    times: dict[int, Linear]  # tensor parallelism -> seconds by tokens
    net: float  # bytes a second of one GPU, already times its utilisation
    price_hour: float


class Found(msgspec.Struct, frozen=True, kw_only=True):
    tp_attention: int
    tp_experts: int
    num_attention: int
    micro_batches: int
    batch: int  # requests in the whole system
    tpot_s: float
    tokens_per_s: float
    usd_per_mtok: float


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What is searched: one expert a node, `max_batch[tp_a]` requests fit the memory of an attention instance."""

    attention: Side
    experts: Side
    num_experts: int
    top_k: int
    hidden_size: int
    num_layers: int
    max_batch: Mapping[int, int]
    element_bytes: float = 2.0

    def layouts(self, micro_batches: Iterable[int] = (3, 4)) -> Iterator["Layout"]:
        for tp_a, tp_e, m in product(self.attention.times, self.experts.times, micro_batches):
            balance = attention_instances(
                self.attention.times[tp_a], self.experts.times[tp_e], self.num_experts, self.top_k
            )
            yield Layout(self, tp_a, tp_e, max(1, round(balance)), m)


class Layout(msgspec.Struct, frozen=True):
    problem: Problem
    tp_attention: int
    tp_experts: int
    num_attention: int
    micro_batches: int

    def iteration_s(self, batch: int) -> float:
        """T_c = max of both ends: b_a h K / tp_a / W_a and b_e h / tp_e / W_e."""
        p = self.problem
        b_a = batch / (self.micro_batches * self.num_attention)
        b_e = batch * p.top_k / (self.micro_batches * p.num_experts)
        wire = p.hidden_size * p.element_bytes
        link = max(
            b_a * wire * p.top_k / self.tp_attention / p.attention.net,
            b_e * wire / self.tp_experts / p.experts.net,
        )
        stages = Stages(
            attention_s=p.attention.times[self.tp_attention].at(b_a),
            a2f_s=link,
            ffn_s=p.experts.times[self.tp_experts].at(b_e),
            f2a_s=link,
        )
        return iteration_s(stages, self.micro_batches, p.num_layers)

    def at(self, batch: int) -> Found:
        p, seconds = self.problem, self.iteration_s(batch)
        hourly = (
            self.tp_attention * self.num_attention * p.attention.price_hour
            + self.tp_experts * p.num_experts * p.experts.price_hour
        )
        return Found(
            tp_attention=self.tp_attention,
            tp_experts=self.tp_experts,
            num_attention=self.num_attention,
            micro_batches=self.micro_batches,
            batch=batch,
            tpot_s=seconds,
            tokens_per_s=batch / seconds,
            usd_per_mtok=hourly / 3600 / (batch / seconds) * 1e6,
        )


def search(problem: Problem, tpot_s: float) -> Found:
    """The paper's search: tp_a and tp_e, n_a from the balance, m in {3, 4}, the largest batch under TPOT by bisection.

    Best is least money a token. Raises RequestError where no layout meets the TPOT.
    """
    found, fastest = [], math.inf
    for layout in problem.layouts():
        fastest = min(fastest, layout.iteration_s(layout.micro_batches * layout.num_attention))
        limit = layout.num_attention * problem.max_batch[layout.tp_attention]
        batch = _largest_within(layout, tpot_s, limit)
        if batch:
            found.append(layout.at(batch))
    if not found:
        raise RequestError(
            f"tpot_s: no layout meets {tpot_s * 1e3:g} ms; nearest feasible is {fastest * 1e3:.1f} ms",
            param="tpot_s",
        )
    return min(found, key=lambda f: f.usd_per_mtok)


def _largest_within(layout: Layout, tpot_s: float, limit: int) -> int:
    """The largest batch up to `limit` whose iteration takes at most `tpot_s`, 0 if none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if layout.iteration_s(middle) <= tpot_s:
            low = middle
        else:
            high = middle - 1
    return low
