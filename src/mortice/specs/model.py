"""What a model is: sizes and switches of a decoder, one structure for every architecture we run.

`read_model` (specs/model_config.py) takes the dictionary of a Hugging Face `config.json` (a GGUF file's
metadata is mapped to the same dictionary by specs/gguf.py) and answers a `ModelSpec` whose fields are
resolved: no None that means "derive me".
"""

from typing import Literal

import msgspec

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]
Activation = Literal["silu", "gelu_tanh"]
Router = Literal["softmax", "greedy", "group_limited_greedy", "noaux_tc"]


class RopeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary position embedding over the first `dim` features of a head."""

    dim: int
    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0  # positions the model was trained on before it was stretched
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # yarn: cos and sin are multiplied by it
    truncate: bool = True  # yarn: the ramp's ends are whole features
    divisors: tuple[float, ...] = ()  # of each pair's frequency, where a GGUF file lists them; empty: none
    interleaved: bool = False  # pairs are (2i, 2i + 1) in the weights, not (i, i + dim / 2)


class LatentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """DeepSeek's latent attention: what is cached is `rank` compressed features and `rope_dim` rotated
    ones."""

    rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


class AttentionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Softmax attention. Grouped (num_kv_heads < num_heads), factorised (query_rank and one KV head) or
    latent."""

    num_heads: int
    num_kv_heads: int
    head_dim: int  # of a query; for latent attention nope_dim + rope_dim
    scale: float
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False  # RMS norm over each head of q and k, before rotation
    query_rank: int = 0  # 0: the query projection is one matrix; else two with an RMS norm between
    latent: LatentSpec | None = None

    @property
    def out_features(self) -> int:
        """Width of the heads laid end to end, as the output projection takes them."""
        return self.num_heads * (self.latent.value_dim if self.latent else self.head_dim)

    @property
    def kv_planes(self) -> tuple[tuple[int, int], ...]:
        """(heads, dim) of each plane of a layer's KV cache: keys and values, or the one latent plane."""
        if self.latent:
            return ((1, self.latent.rank + self.latent.rope_dim),)
        return ((self.num_kv_heads, self.head_dim), (self.num_kv_heads, self.head_dim))


class MoESpec(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of experts behind a router."""

    num_experts: int
    top_k: int
    expert_size: int  # hidden width of one expert
    layers: tuple[int, ...]  # which layers have experts; the others have a dense MLP
    shared_size: int = 0  # hidden width of the expert that every token visits; 0: none
    router: Router = "softmax"
    normalise: bool = False  # weights of the chosen experts sum to one
    scaling: float = 1.0  # the chosen experts' weights are multiplied by it
    num_groups: int = 1
    top_groups: int = 1


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder-only transformer."""

    architecture: str  # folder under models/
    num_layers: int
    hidden_size: int
    intermediate_size: int  # of the dense MLP
    vocab_size: int
    max_context: int  # positions
    eos_token_ids: tuple[int, ...]
    attention: AttentionSpec
    rope: RopeSpec
    bos_token_id: int | None = None
    rope_local: RopeSpec | None = None  # for layers with a window, where theirs differs
    windows: tuple[int, ...] = ()  # a layer's sliding window in tokens, 0 for none; empty: no layer has one
    moe: MoESpec | None = None
    norm_eps: float = 1e-6
    norm_offset: float = 0.0  # RMS norm multiplies by offset + weight
    activation: Activation = "silu"
    mlp_bias: bool = False
    sandwich_norms: bool = False  # norms after attention and MLP too, before the residual is added
    embedding_scale: float = 1.0
    tie_embeddings: bool = False
    dtype: str = "float32"  # of the checkpoint, as its config says

    def window(self, layer: int) -> int:
        return self.windows[layer] if self.windows else 0

    def layer_rope(self, layer: int) -> RopeSpec:
        return self.rope_local if self.rope_local and self.window(layer) else self.rope

    def has_experts(self, layer: int) -> bool:
        return self.moe is not None and layer in self.moe.layers
