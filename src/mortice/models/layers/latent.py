"""Latent attention (DeepSeek-V2, arXiv 2405.04434): the cache holds one compressed vector a token for all
heads."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mortice.models.builder import Builder, Piece
from mortice.models.layers.paging import attention_plan, attention_tiles, write_rows
from mortice.models.layers.rotary import Rotary
from mortice.models.step import KVCache, StepInput
from mortice.ops.latent_attention import attend_latent, attend_latent_tiles
from mortice.ops.norm import rms_norm
from mortice.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class LatentNames:
    """Checkpoint names, without .weight where it is a projection. `q` is used where queries are one
    matrix."""

    q: str
    q_down: str
    q_norm: str
    q_up: str
    kv_down: str
    kv_norm: str
    kv_up: str
    out: str


class LatentAttention:
    """Queries, keys and values meet in the compressed space when few tokens ask, in the expanded one when
    many do."""

    def __init__(
        self, spec: ModelSpec, layer: int, names: LatentNames, rotary: Rotary, builder: Builder
    ) -> None:
        a = self.spec = spec.attention
        assert a.latent is not None
        latent = self.latent = a.latent
        self.layer, self.window, self.dtype, self.rotary = layer, spec.window(layer), builder.dtype, rotary
        self.eps = spec.norm_eps
        query = Piece(names.q, a.num_heads * a.head_dim, rope_order(a.num_heads, latent.nope_dim, spec))
        down = Piece(names.q_down, a.query_rank) if a.query_rank else query
        kv_down = Piece(names.kv_down, latent.rank + latent.rope_dim, rope_order(1, latent.rank, spec))
        self.down = builder.linear([down, kv_down], spec.hidden_size)
        self.q_norm = self.q_up = None
        if a.query_rank:
            self.q_norm = builder.norm(names.q_norm, a.query_rank)
            self.q_up = builder.linear([Piece(names.q_up, query.size, query.order)], a.query_rank)
        self.kv_norm = builder.norm(names.kv_norm, latent.rank)
        # Used as it is and, per head, transposed: kept plain in the activations' dtype.
        self.kv_up = builder.factor(
            f"{names.kv_up}.weight", a.num_heads * (latent.nope_dim + latent.value_dim), latent.rank
        )
        self.out = builder.linear([Piece(names.out, spec.hidden_size)], a.out_features)

    def __call__(self, x: Tensor, step: StepInput, kv: KVCache) -> Tensor:
        """`x` [T, hidden] to [T, hidden]; writes the step's compressed KV into the cache on the way."""
        a, latent = self.spec, self.latent
        down = self.down(x, step)
        q, compressed = down.split(
            [down.shape[1] - latent.rank - latent.rope_dim, latent.rank + latent.rope_dim], 1
        )
        if self.q_up is not None and self.q_norm is not None:
            q = self.q_up(rms_norm(q, self.q_norm, self.eps), step)
        heads = q.reshape(len(x), a.num_heads, a.head_dim)
        plain, turned = heads.split([latent.nope_dim, latent.rope_dim], dim=-1)
        turned = self.rotary(turned, step)
        key = self.rotary(compressed[:, None, latent.rank :], step)[:, 0]
        held = torch.cat((rms_norm(compressed[:, : latent.rank], self.kv_norm, self.eps), key), dim=-1)
        kv.rows[self.layer][0].index_copy_(0, write_rows(step, kv, 0), held)
        up = self.kv_up.view(a.num_heads, latent.nope_dim + latent.value_dim, latent.rank)
        (plane,) = kv.planes[self.layer]
        if step.deterministic:
            tiles = attention_tiles(step, kv, self.window)
            y = attend_latent_tiles(plain, turned, up, plane, tiles, a.scale)
        else:
            plan = attention_plan(step, kv, self.window, self.dtype, in_place=False)
            y = attend_latent(plain, turned, up, held, plane, plan, a.scale)
        return self.out(y, step)


def rope_order(heads: int, kept: int, spec: ModelSpec) -> Tensor | None:
    """Row order that turns neighbouring rotary pairs into halves; each head has `kept` rows before its rotary
    ones.

    Scores are sums over pairs, so q and k reordered alike give the same ones.
    """
    if not spec.rope.interleaved:
        return None
    dim = spec.rope.dim
    rotary = kept + torch.cat((torch.arange(0, dim, 2), torch.arange(1, dim, 2)))
    one = torch.cat((torch.arange(kept), rotary))
    return (torch.arange(heads)[:, None] * (kept + dim) + one).flatten()
