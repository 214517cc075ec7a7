"""Factorised queries over one KV head (MFA, arXiv 2412.19255; Step-3, arXiv 2507.19427)."""

from dataclasses import dataclass

from torch import Tensor

from mortice.models.builder import Builder, Piece
from mortice.models.layers.attention import attend_paged
from mortice.models.layers.paging import write_rows
from mortice.models.layers.rotary import Rotary
from mortice.models.step import KVCache, StepInput
from mortice.ops.kv_write import write
from mortice.ops.norm import rms_norm
from mortice.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class FactorisedNames:
    """Checkpoint names, without .weight where it is a projection."""

    q_down: str
    k: str
    v: str
    q_norm: str
    q_up: str
    out: str


class FactorisedAttention:
    """c = norm(x S_q), q_i = c Q_i; k = x S_k and v = x S_v are shared by all heads; rotation on all of q
    and k."""

    def __init__(
        self, spec: ModelSpec, layer: int, names: FactorisedNames, rotary: Rotary, builder: Builder
    ) -> None:
        a = self.spec = spec.attention
        self.layer, self.window, self.dtype, self.rotary = layer, spec.window(layer), builder.dtype, rotary
        self.eps = spec.norm_eps
        pieces = Piece(names.q_down, a.query_rank), Piece(names.k, a.head_dim), Piece(names.v, a.head_dim)
        self.down = builder.linear(pieces, spec.hidden_size)
        self.q_norm = builder.norm(names.q_norm, a.query_rank)
        self.q_up = builder.linear([Piece(names.q_up, a.num_heads * a.head_dim)], a.query_rank)
        self.out = builder.linear([Piece(names.out, spec.hidden_size)], a.out_features)

    def __call__(self, x: Tensor, step: StepInput, kv: KVCache) -> Tensor:
        """`x` [T, hidden] to [T, hidden]; writes the step's keys and values into the cache on the way."""
        a = self.spec
        latent, k, v = self.down(x, step).split([a.query_rank, a.head_dim, a.head_dim], dim=1)
        q = self.q_up(rms_norm(latent, self.q_norm, self.eps), step).view(len(x), a.num_heads, a.head_dim)
        q, k = self.rotary(q, step), self.rotary(k[:, None], step)
        v = v[:, None]
        write(k, v, kv.rows[self.layer], (write_rows(step, kv, 0), write_rows(step, kv, 1)))
        return self.out(attend_paged(q, k, v, step, kv, self), step)
