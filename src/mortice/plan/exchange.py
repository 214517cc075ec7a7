"""Bytes and seconds of an expert-parallel exchange: tokens cross each tier once a domain, not once an expert.

Two tiers: domains (nodes, or a rack) joined by scale-out links, ranks inside one joined by scale-up links.
"""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from mortice.cost.accounting import Number
from mortice.specs.errors import RequestError


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """Attainable bytes a second of one rank in one direction, and seconds a phase takes however small it is."""

    bandwidth: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise RequestError(
                f"bandwidth must be above 0 bytes a second, not {self.bandwidth:g}", param="bandwidth"
            )


class ExchangeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank sends in a dispatch; a combine is the same backwards with its own bytes an element."""

    domains_visited: float  # E[u]: domains with at least one chosen expert, the token's own among them
    ranks_visited: float  # the same for ranks
    scale_out_bytes: float
    scale_up_bytes: float
    naive_scale_out_bytes: float  # one copy an expert, nothing deduplicated


def expected_visits(num_groups: int, num_experts: int, top_k: int) -> float:
    """Expected number of groups that hold at least one of a token's k distinct experts, E / groups in each.

    groups (1 - C(E - E/g, k) / C(E, k)). DeepEP-style tables use the limit of draws with replacement,
    g (1 - (1 - 1/g)^k): see `expected_visits_with_replacement`.
    """
    if num_groups < 1 or num_groups > num_experts:
        raise RequestError(
            f"num_groups must be 1 to {num_experts} experts, not {num_groups}", param="num_groups"
        )
    if num_experts % num_groups == 0:
        held = [num_experts // num_groups] * num_groups
    else:
        small, larger = divmod(num_experts, num_groups)
        held = [small + 1] * larger + [small] * (num_groups - larger)
    every = math.comb(num_experts, top_k)
    return sum(1 - math.comb(num_experts - h, top_k) / every for h in held)


def expected_visits_with_replacement(num_groups: int, top_k: int) -> float:
    """g (1 - (1 - 1/g)^k): 5.25, 6.45, 7.18, 7.58 for k = 8 and g = 8, 16, 32, 64."""
    return num_groups * (1 - (1 - 1 / num_groups) ** top_k)


def dispatch_load(
    *,
    tokens: float,
    hidden_size: int,
    element_bytes: float,
    num_experts: int,
    top_k: int,
    num_ranks: int,
    ranks_per_domain: int,
) -> ExchangeLoad:
    """Bytes one rank puts on each tier. `tokens`: of this rank.

    A copy leaves for each other domain with a chosen expert (to the rank of the same local index); there, and at
    home, one copy goes to each further rank that holds one.
    """
    if num_ranks < 1 or ranks_per_domain < 1:
        raise RequestError("num_ranks and ranks_per_domain must be at least 1", param="num_ranks")
    per_domain = min(ranks_per_domain, num_ranks)
    if num_ranks % per_domain:
        raise RequestError(
            f"num_ranks ({num_ranks}) must fill whole domains of {per_domain}; nearest is "
            f"{max(1, num_ranks // per_domain) * per_domain}",
            param="num_ranks",
        )
    num_domains = num_ranks // per_domain
    bytes_each = tokens * hidden_size * element_bytes
    domains = expected_visits(num_domains, num_experts, top_k)
    ranks = expected_visits(num_ranks, num_experts, top_k)
    other_domains = domains * (num_domains - 1) / num_domains
    # Of the ranks visited, one in `per_domain` is where the copy already lies.
    forwarded = ranks * (per_domain - 1) / per_domain
    return ExchangeLoad(
        domains_visited=domains,
        ranks_visited=ranks,
        scale_out_bytes=bytes_each * other_domains,
        scale_up_bytes=bytes_each * forwarded,
        naive_scale_out_bytes=bytes_each * top_k * (num_domains - 1) / num_domains,
    )


def exchange_s(
    load: ExchangeLoad, scale_up: Tier, scale_out: Tier | None, *, overlapped: bool = True
) -> float:
    """Seconds of one dispatch or combine. Tiers overlap by chunks (the slower one counts) unless told otherwise."""
    inside = scale_up.latency_s + load.scale_up_bytes / scale_up.bandwidth
    if load.scale_out_bytes == 0:
        return inside
    if scale_out is None:
        raise RequestError(
            "the group spans several domains but no scale-out tier is given", param="scale_out"
        )
    across = scale_out.latency_s + load.scale_out_bytes / scale_out.bandwidth
    return max(inside, across) if overlapped else inside + across


def expected_imbalance(tokens: Number, top_k: int, num_ranks: Number) -> NDArray[np.float64]:
    """Largest over mean load of a rank under uniform random routing, to first order; arguments broadcast.

    A rank's load is near normal with mean n k / R and variance n (k / R)(1 - 1 / R); the largest of R lies
    sqrt(2 ln R) deviations up. Real routers are worse: give a measured figure where there is one.
    """
    ranks = np.maximum(np.asarray(num_ranks, dtype=np.float64), 1.0)
    mean = np.asarray(tokens, dtype=np.float64) * top_k / ranks
    return 1 + np.sqrt(2 * np.log(ranks) * (1 - 1 / ranks) / mean)


def collective_s(
    kind: str, *, num_bytes: float, num_ranks: int, bandwidth: float, latency_s: float = 0.0
) -> float:
    """Seconds of a collective over `num_bytes` in all (all-gather, reduce-scatter, all-to-all: the gathered size;
    all-reduce: the tensor), by the bus bandwidth that NCCL tests report."""
    share = (num_ranks - 1) / num_ranks
    factor = {"all_gather": share, "reduce_scatter": share, "all_to_all": share, "all_reduce": 2 * share}
    if kind not in factor:
        raise RequestError(f"kind must be one of {', '.join(factor)}, not {kind}", param="kind")
    return latency_s + factor[kind] * num_bytes / bandwidth if num_ranks > 1 else 0.0
