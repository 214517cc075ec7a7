"""Mixture of experts: which experts a token visits, and their gated MLPs.

The four routers (Mixtral arXiv 2401.04088, DeepSeek-V2 2405.04434, DeepSeek-V3 2412.19437):
softmax                softmax over the logits, the best k
greedy                 the same; DeepSeek's name for it
group_limited_greedy   softmax, the best groups by their best expert, the best k inside those
noaux_tc               sigmoid, choice by score plus a learnt bias (groups by their best two), weight without
the bias
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mortice.ops.activation import by_rows
from mortice.ops.linear import Linear
from mortice.ops.rows import by_row_blocks


@dataclass(frozen=True, slots=True)
class Routing:
    router: str
    top_k: int
    normalise: bool  # chosen weights sum to one
    scaling: float
    num_groups: int
    top_groups: int


def router_scores(x: Tensor, gate: Tensor, router: str, deterministic: bool) -> Tensor:
    """[T, E] float32 scores of `x` [T, K] under `gate` [E, K] float32."""

    def product(rows: Tensor) -> Tensor:
        logits = F.linear(rows.float(), gate)
        return logits.sigmoid() if router == "noaux_tc" else logits.softmax(dim=-1)

    return by_row_blocks(product, x) if deterministic else product(x)


def choose(scores: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
    """(weights [T, k] float32, expert ids [T, k]) for `scores` [T, E]; `bias` [E] bends the choice, not the
    weights."""
    wanted = scores if bias is None else scores + bias
    if routing.router in ("group_limited_greedy", "noaux_tc"):
        grouped = wanted.view(len(wanted), routing.num_groups, -1)
        if routing.router == "noaux_tc":
            of_groups = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
        else:
            of_groups = grouped.amax(dim=-1)
        best = of_groups.topk(routing.top_groups, dim=-1).indices
        closed = torch.ones_like(of_groups, dtype=torch.bool).scatter_(1, best, False)
        floor = float("-inf") if routing.router == "noaux_tc" else 0.0
        wanted = grouped.masked_fill(closed[..., None], floor).flatten(1)
    ids = wanted.topk(routing.top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    if routing.router == "group_limited_greedy":
        weights = wanted.gather(1, ids)
    if routing.normalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * routing.scaling, ids


@dataclass(frozen=True, slots=True)
class Expert:
    gate_up: Linear  # [2 I, K]
    down: Linear  # [K, I]


def run_experts(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    experts: Sequence[Expert],
    activation: Callable[[Tensor], Tensor],
    deterministic: bool,
) -> Tensor:
    """Sum over a token's experts of weight * expert(x), [T, K], added up in float32 in the order of expert
    ids.

    Tokens are sorted by expert, so each expert that is wanted runs once, on just its rows.
    """
    top_k = ids.shape[1]
    order = ids.flatten().argsort(stable=True)
    counts = torch.bincount(ids.flatten(), minlength=len(experts)).tolist()
    tokens, scale = order // top_k, weights.flatten().index_select(0, order)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    first = 0
    for expert, count in zip(experts, counts, strict=True):
        if not count:
            continue
        rows = tokens[first : first + count]

        def mlp(inputs: Tensor, expert: Expert = expert) -> Tensor:
            wide = expert.gate_up.product(inputs)
            return expert.down.product(by_rows(activation, wide) if deterministic else activation(wide))

        chosen = x.index_select(0, rows)
        y = by_row_blocks(mlp, chosen) if deterministic else mlp(chosen)
        out.index_add_(0, rows, y.float().mul_(scale[first : first + count, None]))
        first += count
    return out.to(x.dtype)
