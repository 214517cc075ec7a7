"""A decoder layer: attention and MLP, each behind a norm and beside a residual."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mortice.models.step import KVCache, StepInput
from mortice.ops.norm import add_rms_norm, rms_norm

Attention = Callable[[Tensor, StepInput, KVCache], Tensor]
MLP = Callable[[Tensor, StepInput], Tensor]


@dataclass(slots=True)
class DecoderLayer:
    attention_norm: Tensor
    attention: Attention
    mlp_norm: Tensor
    mlp: MLP
    eps: float
    attention_post_norm: Tensor | None = None  # Gemma-3 norms what a block adds, too
    mlp_post_norm: Tensor | None = None

    def __call__(self, x: Tensor, step: StepInput, kv: KVCache) -> Tensor:
        """`x` [T, hidden], overwritten."""
        added = self.attention(rms_norm(x, self.attention_norm, self.eps), step, kv)
        between = add_rms_norm(x, self.normed(added, self.attention_post_norm), self.mlp_norm, self.eps)
        x += self.normed(self.mlp(between, step), self.mlp_post_norm)
        return x

    def normed(self, added: Tensor, weight: Tensor | None) -> Tensor:
        return added if weight is None else rms_norm(added, weight, self.eps)
