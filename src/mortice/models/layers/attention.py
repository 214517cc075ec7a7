"""Attention whose KV cache holds keys and values: many KV heads, a few (GQA) or one (MQA, MFA)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mortice.models.builder import Builder, Piece
from mortice.models.layers.paging import attention_plan, attention_tiles, write_rows
from mortice.models.layers.rotary import Rotary
from mortice.models.step import KVCache, StepInput
from mortice.ops.attention import attend, can_attend_in_place
from mortice.ops.deterministic_attention import attend_tiles
from mortice.ops.kv_write import rotate_and_write
from mortice.specs.model import AttentionSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class AttentionNames:
    """Checkpoint names, without the .weight and .bias of projections."""

    q: str
    k: str
    v: str
    out: str
    q_norm: str = ""
    k_norm: str = ""


class Windowed(Protocol):
    """What attend_paged must know of the layer it works for."""

    layer: int
    window: int
    dtype: torch.dtype
    spec: AttentionSpec


class GroupedAttention:
    """Query heads in groups that share a KV head; optional biases, norms of q and k, sliding window."""

    def __init__(
        self, spec: ModelSpec, layer: int, names: AttentionNames, rotary: Rotary, builder: Builder
    ) -> None:
        a = self.spec = spec.attention
        self.layer = layer
        self.window = spec.window(layer)
        self.eps = spec.norm_eps
        self.rotary = rotary
        self.dtype = builder.dtype
        kv = a.num_kv_heads * a.head_dim
        pieces = Piece(names.q, a.num_heads * a.head_dim), Piece(names.k, kv), Piece(names.v, kv)
        self.qkv = builder.linear(pieces, spec.hidden_size, bias=a.qkv_bias)
        self.out = builder.linear([Piece(names.out, spec.hidden_size)], a.out_features, bias=a.out_bias)
        self.norms: tuple[Tensor, Tensor] | None = None
        if a.qk_norm:
            self.norms = (
                builder.norm(names.q_norm, a.head_dim, spec.norm_offset),
                builder.norm(names.k_norm, a.head_dim, spec.norm_offset),
            )

    def __call__(self, x: Tensor, step: StepInput, kv: KVCache) -> Tensor:
        """`x` [T, hidden] to [T, hidden]; writes the step's keys and values into the cache on the way."""
        a = self.spec
        qkv = self.qkv(x, step).view(len(x), a.num_heads + 2 * a.num_kv_heads, a.head_dim)
        turn, rows = self.rotary.rows(step), (write_rows(step, kv, 0), write_rows(step, kv, 1))
        q, k, v = rotate_and_write(qkv, turn, self.norms, self.eps, kv.rows[self.layer], rows)
        return self.out(attend_paged(q, k, v, step, kv, self), step)


def attend_paged(q: Tensor, k: Tensor, v: Tensor, step: StepInput, kv: KVCache, layer: "Windowed") -> Tensor:
    """[T, H * D] of `q` [T, H, D] over the cache, to which the step's `k` and `v` [T, G, D] have been written."""
    k_plane, v_plane = kv.planes[layer.layer]
    if step.deterministic:
        tiles = attention_tiles(step, kv, layer.window)
        return attend_tiles(q, k_plane, v_plane, tiles, layer.spec.scale).flatten(1)
    in_place = can_attend_in_place(q.shape[2], q.dtype, q.device)
    plan = attention_plan(step, kv, layer.window, layer.dtype, in_place=in_place)
    return attend(q, k, v, k_plane, v_plane, plan, layer.spec.scale)
