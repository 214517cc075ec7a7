"""What a model costs hangs on its sizes alone: a `ModelShape` is a decoder as counts and widths.

specs/model.py says how a model computes, for the engine; this says how much, for the planner, and so takes in
families that the engine does not run. Layers that are alike form a group; `order` gives each layer's group.
"""

from typing import Literal

import msgspec

AttentionKind = Literal["full", "window", "chunk", "linear"]


class AttentionShape(msgspec.Struct, frozen=True, kw_only=True):
    """One layer's attention. `window` bounds the keys a query sees (window) or the chunk it lies in (chunk)."""

    kind: AttentionKind = "full"
    num_heads: int
    num_kv_heads: int
    head_dim: int  # of queries and keys; for latent attention nope_dim + rope_dim
    value_dim: int  # of values
    query_rank: int = 0  # 0: one query matrix; else down to this width and up to the heads
    latent_rank: int = 0  # MLA: width of the cached latent; 0: keys and values are cached
    rope_dim: int = 0  # MLA: width of the cached rotary key
    window: int = 0  # tokens

    @property
    def family(self) -> str:
        """The field's name for it: MHA, GQA, MQA, MLA, MFA or linear."""
        if self.kind == "linear":
            return "linear"
        if self.latent_rank:
            return "MLA"
        if self.num_kv_heads == 1:
            return "MFA" if self.query_rank else "MQA"
        return "MHA" if self.num_kv_heads == self.num_heads else "GQA"

    @property
    def effective_rank(self) -> int:
        """Heads times head size (Step-3, section 4): what a design gives up when its attention is made cheap."""
        return self.num_heads * self.value_dim

    @property
    def kv_elements(self) -> int:
        """Elements cached for a token (for linear attention, elements of the state of a sequence)."""
        if self.kind == "linear":
            return self.num_heads * self.head_dim * self.value_dim
        if self.latent_rank:
            return self.latent_rank + self.rope_dim
        return self.num_kv_heads * (self.head_dim + self.value_dim)

    def matrices(self, hidden_size: int) -> dict[str, tuple[int, int]]:
        """The projections by name as (inputs, outputs). Their products sum to the layer's parameters."""
        out_width = self.num_heads * self.value_dim
        query_width = self.num_heads * self.head_dim
        shapes: dict[str, tuple[int, int]] = {}
        if self.query_rank:
            shapes["q_down"] = (hidden_size, self.query_rank)
            shapes["q_up"] = (self.query_rank, query_width)
        else:
            shapes["q"] = (hidden_size, query_width)
        if self.latent_rank:
            nope_dim = self.head_dim - self.rope_dim
            shapes["kv_down"] = (hidden_size, self.latent_rank + self.rope_dim)
            shapes["kv_up"] = (self.latent_rank, self.num_heads * (nope_dim + self.value_dim))
        elif self.kind == "linear":
            shapes["kv"] = (hidden_size, self.num_heads * (self.head_dim + self.value_dim))
            shapes["gate"] = (hidden_size, out_width)
        else:
            shapes["kv"] = (hidden_size, self.num_kv_heads * (self.head_dim + self.value_dim))
        shapes["o"] = (out_width, hidden_size)
        return shapes

    def parameters(self, hidden_size: int) -> int:
        return sum(rows * columns for rows, columns in self.matrices(hidden_size).values())


class FfnShape(msgspec.Struct, frozen=True, kw_only=True):
    """One layer's FFN: dense, or routed experts with shared ones beside them (`dense_size` 0)."""

    dense_size: int = 0
    num_experts: int = 0
    top_k: int = 0
    expert_size: int = 0
    num_shared: int = 0
    shared_size: int = 0  # all shared experts together
    matrices: int = 3  # gate, up, down; 2 without a gate

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    def parameters(self, hidden_size: int, *, active: bool = False) -> int:
        """Weights of the layer; with `active` those one token meets. The router is not counted here."""
        experts = self.top_k if active else self.num_experts
        width = self.dense_size + self.shared_size + experts * self.expert_size
        return self.matrices * hidden_size * width

    @property
    def density(self) -> float:
        """(k + shared) / (E + shared), Step-3 section 5.4; 1 for a dense layer."""
        if not self.is_moe:
            return 1.0
        return (self.top_k + self.num_shared) / (self.num_experts + self.num_shared)


class LayerGroup(msgspec.Struct, frozen=True, kw_only=True):
    """`count` layers that are alike."""

    count: int
    attention: AttentionShape
    ffn: FfnShape


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder as sizes."""

    name: str
    family: str  # model_type of its config
    hidden_size: int
    vocab_size: int
    max_context: int
    groups: tuple[LayerGroup, ...]
    order: tuple[int, ...]  # group of each layer
    tie_embeddings: bool = False
    draft_layers: int = 0  # layers of multi-token prediction that ship with the weights
    weight_dtype: str = "bf16"  # of the checkpoint
    assumed: tuple[str, ...] = ()  # what the config left open and how it was read
    source: str = ""

    @property
    def num_layers(self) -> int:
        return len(self.order)

    @property
    def moe_layers(self) -> int:
        return sum(group.count for group in self.groups if group.ffn.is_moe)

    @property
    def moe(self) -> FfnShape | None:
        """The first group's experts, if any layer has experts."""
        return next((group.ffn for group in self.groups if group.ffn.is_moe), None)

    @property
    def hybrid(self) -> bool:
        """Layers differ in their kind of attention."""
        return len({group.attention.kind for group in self.groups}) > 1
