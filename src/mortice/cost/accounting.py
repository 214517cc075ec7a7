"""Parameters, bytes and FLOPs of a model, per token, from its shape alone.

1 multiply-accumulate is 2 FLOP. `context` may be an array of token counts; results have its shape. Sources: Step-3
(arXiv 2507.19427) section 4 for decode, the usual 2 P T and causal half square for prefill.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mortice.cost.conventions import HONEST, Convention
from mortice.cost.dtypes import dtype_bytes
from mortice.specs.shape import AttentionShape, ModelShape

Number = float | NDArray[np.float64]
LINEAR_CHUNK = 256  # tokens of a block of lightning attention
STATE_BYTES = 4.0  # the state of linear attention is kept in FP32


def parameters(model: ModelShape) -> int:
    """All weights: attention, FFN, routers and embeddings; norms and biases (below 0.1 %) are left out."""
    hidden = model.hidden_size
    layers = sum(
        group.count
        * (group.attention.parameters(hidden) + group.ffn.parameters(hidden) + group.ffn.num_experts * hidden)
        for group in model.groups
    )
    return layers + (1 if model.tie_embeddings else 2) * model.vocab_size * hidden


def active_parameters(model: ModelShape, *, head: bool = True) -> int:
    """Weights that one token is multiplied with; the embedding row it reads is not counted, the LM head is."""
    hidden = model.hidden_size
    layers = sum(
        group.count
        * (
            group.attention.parameters(hidden)
            + group.ffn.parameters(hidden, active=True)
            + group.ffn.num_experts * hidden
        )
        for group in model.groups
    )
    return layers + (model.vocab_size * hidden if head else 0)


def attention_parameters(model: ModelShape) -> int:
    """Weights of all attention layers."""
    return sum(group.count * group.attention.parameters(model.hidden_size) for group in model.groups)


def ffn_parameters(model: ModelShape, *, active: bool = False) -> int:
    """Weights of all FFN layers without routers; with `active` those one token meets."""
    return sum(group.count * group.ffn.parameters(model.hidden_size, active=active) for group in model.groups)


def weight_bytes(model: ModelShape, dtype: str | None = None, attention_dtype: str | None = None) -> float:
    """Bytes of all weights: FFN at `dtype` (default: the checkpoint's), attention at `attention_dtype` (default:
    the same), embeddings at two bytes an element."""
    ffn_dtype = dtype or model.weight_dtype
    embeddings = (1 if model.tie_embeddings else 2) * model.vocab_size * model.hidden_size
    routers = sum(group.count * group.ffn.num_experts for group in model.groups) * model.hidden_size
    return (
        ffn_parameters(model) * dtype_bytes(ffn_dtype)
        + attention_parameters(model) * dtype_bytes(attention_dtype or ffn_dtype)
        + 2.0 * (embeddings + routers)
    )


def keys_seen(attention: AttentionShape, context: Number) -> Number:
    """Keys that a decoded token attends to."""
    if attention.kind in ("window", "chunk"):
        return cast(Number, np.minimum(context, attention.window))
    return context


def kv_layer_bytes(attention: AttentionShape, context: Number, bytes_an_element: float) -> Number:
    """Bytes of KV (or state) of one layer of one sequence of `context` tokens, as they lie in memory."""
    if attention.kind == "linear":
        return STATE_BYTES * attention.kv_elements + 0.0 * np.asarray(context)
    return bytes_an_element * attention.kv_elements * keys_seen(attention, context)


def _kv_bytes(model: ModelShape, attention: AttentionShape, kv_dtype: str, rule: Convention) -> float:
    own = rule.hybrid_full_kv_dtype if model.hybrid and attention.kind == "full" else None
    return dtype_bytes(own or kv_dtype)


def kv_cache_bytes(
    model: ModelShape, context: Number, kv_dtype: str = "bf16", rule: Convention = HONEST
) -> Number:
    """Resident KV of one sequence, all layers."""
    return _over_layers(
        model, lambda a: kv_layer_bytes(a, context, _kv_bytes(model, a, kv_dtype, rule)), context
    )


def kv_read_bytes(
    model: ModelShape, context: Number, kv_dtype: str = "bf16", rule: Convention = HONEST
) -> Number:
    """Bytes of KV or state moved to decode one token: KV is read, a linear state read and written (Step-3,
    Table 2)."""

    def layer(attention: AttentionShape) -> Number:
        moved = kv_layer_bytes(attention, context, _kv_bytes(model, attention, kv_dtype, rule))
        return 2.0 * moved if attention.kind == "linear" else moved

    return _over_layers(model, layer, context)


def attention_layer_flops(
    attention: AttentionShape, context: Number, rule: Convention = HONEST, tile_rows: int = 1, q_len: int = 1
) -> Number:
    """FLOPs of scores and values for `q_len` decoded tokens of one sequence in one layer, without projections.

    MLA is absorbed: queries meet the latent. With `rule.pad_tiles` the query rows that share a KV head are rounded
    up to `tile_rows`, as a matrix unit computes them.
    """
    if attention.kind == "linear":
        return q_len * rule.linear_state_flops * attention.kv_elements + 0.0 * np.asarray(context)
    keys = keys_seen(attention, context)
    kv_heads = 1 if attention.latent_rank else attention.num_kv_heads
    rows = attention.num_heads // kv_heads * q_len
    if rule.pad_tiles:
        rows = -(-rows // tile_rows) * tile_rows
    return 2.0 * kv_heads * rows * sum(score_value_dims(attention, rule)) * keys


def score_value_dims(attention: AttentionShape, rule: Convention) -> tuple[int, int]:
    """Inner sizes of the two products of decode attention: with keys, with values."""
    if attention.latent_rank:
        cached = attention.latent_rank + attention.rope_dim
        return cached, cached if rule.mla_value_as_cached else attention.latent_rank
    return attention.head_dim, attention.value_dim


def attention_flops(
    model: ModelShape, context: Number, rule: Convention = HONEST, tile_rows: int = 1, q_len: int = 1
) -> Number:
    """Core attention FLOPs of one decode step of one sequence, all layers."""
    return _over_layers(model, lambda a: attention_layer_flops(a, context, rule, tile_rows, q_len), context)


def linear_flops(model: ModelShape, rule: Convention = HONEST) -> float:
    """FLOPs a token of the attention projections, and of routers and LM head where `rule` counts them."""
    flops = 2.0 * attention_parameters(model)
    if rule.count_router:
        flops += 2.0 * model.hidden_size * sum(group.count * group.ffn.num_experts for group in model.groups)
    if rule.count_head:
        flops += 2.0 * model.hidden_size * model.vocab_size
    return flops


def ffn_flops(model: ModelShape) -> float:
    """FLOPs a token of dense, shared and chosen experts."""
    return 2.0 * ffn_parameters(model, active=True)


def arithmetic_intensity(
    model: ModelShape, context: Number, kv_dtype: str = "fp8", rule: Convention = HONEST, tile_rows: int = 1
) -> Number:
    """Core attention FLOP a byte of KV moved, in decode: independent of batch, and of context in a homogeneous
    stack. With `rule.pad_tiles` and `tile_rows` it is the intensity a kernel sees."""
    moved = kv_read_bytes(model, context, kv_dtype, rule)
    return attention_flops(model, context, rule, tile_rows) / moved


def effective_rank(model: ModelShape) -> int:
    """Heads times head size of the widest layer kind (Step-3, section 4)."""
    return max(group.attention.effective_rank for group in model.groups)


def prefill_flops(
    model: ModelShape, tokens: Number, prefix: Number = 0.0, rule: Convention = HONEST
) -> dict[str, Number]:
    """FLOPs to prefill `tokens` after a cached `prefix`: {"gemm", "attention", "exp"}; `exp` counts exponentials.

    Pairs of query and key are T * prefix + T^2 / 2 (the whole square where `rule.causal_half` is off), bounded by a
    window or chunk. MLA is not absorbed: keys and values are expanded to heads.
    """
    attention = _over_layers(
        model,
        lambda a: 2.0 * a.num_heads * (a.head_dim + a.value_dim) * pairs(a, tokens, prefix, rule),
        tokens,
    )
    exponentials = _over_layers(
        model,
        lambda a: (
            a.num_heads * pairs(a, tokens, prefix, rule) if a.kind != "linear" else 0.0 * np.asarray(tokens)
        ),
        tokens,
    )
    gemm = (linear_flops(model, rule) + ffn_flops(model)) * np.asarray(tokens, dtype=float)
    return {"gemm": gemm, "attention": attention, "exp": exponentials}


def pairs(attention: AttentionShape, tokens: Number, prefix: Number, rule: Convention) -> Number:
    """Pairs of query and key that a prefill computes in one layer, for one head."""
    new, old = np.asarray(tokens, dtype=float), np.asarray(prefix, dtype=float)
    half = 0.5 if rule.causal_half else 1.0
    if attention.kind == "linear":  # blockwise: a chunk against itself and the state
        return cast(Number, new * (LINEAR_CHUNK * half + attention.head_dim))
    everything = new * old + half * new * new
    if attention.kind in ("window", "chunk"):
        bound = new * attention.window * (half if attention.kind == "chunk" else 1.0)
        return cast(Number, np.minimum(everything, bound))
    return cast(Number, everything)


def training_flops(model: ModelShape, context: Number, rule: Convention = HONEST) -> Number:
    """FLOPs a token of one training step on sequences of `context` tokens: three times the forward pass
    (Step-3, figure 4). Without the causal half a token attends to the whole context."""
    if rule.causal_half:
        forward = prefill_flops(model, context, 0.0, rule)
        return 3.0 * (forward["gemm"] + forward["attention"]) / context
    return 3.0 * (attention_flops(model, context, rule) + linear_flops(model, rule) + ffn_flops(model))


def _over_layers(model: ModelShape, layer: Callable[[AttentionShape], Number], like: Number) -> Number:
    """Sum over all layers of `layer(attention)`, in the shape of `like`."""
    total: Number = 0.0 * np.asarray(like, dtype=float)
    for group in model.groups:
        total = total + group.count * layer(group.attention)
    return total if np.ndim(like) else float(total)
