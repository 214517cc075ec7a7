"""One reader a family: which fields of its config give its sizes."""

from typing import Any

import msgspec

from mortice.specs.shape import AttentionShape, FfnShape, ModelShape
from mortice.specs.shape_fields import Noted

DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "ernie4_5")  # one gated MLP a layer


def read_grouped_shape(config: Noted) -> ModelShape:
    """Llama, Mistral, Gemma, dense ERNIE 4.5, Qwen2/3, Mixtral, Qwen3-MoE, GLM-4.5, MiniMax-M2: grouped attention, gated MLP
    or experts."""
    attention = config.grouped()
    windows = _windows(config)
    layers = []
    for i in range(config.layers()):
        window = windows[i] if windows else 0
        shape = msgspec.structs.replace(attention, kind="window", window=window) if window else attention
        layers.append((shape, _grouped_ffn(config, i)))
    return config.shape(layers)


def _grouped_ffn(config: Noted, layer: int) -> FfnShape:
    kind = config.values["model_type"]
    dense = FfnShape(dense_size=config.size("intermediate_size"))
    if kind in DENSE:
        return dense
    if kind == "glm4_moe":
        first = config.integer("first_k_dense_replace", 0, least=0)
        count, top_k = config.experts(config.size("n_routed_experts"), config.size("num_experts_per_tok"))
        shared = config.integer("n_shared_experts", 0, least=0)
        size = config.size("moe_intermediate_size")
        moe = FfnShape(
            num_experts=count, top_k=top_k, expert_size=size, num_shared=shared, shared_size=shared * size
        )
        return dense if layer < first else moe
    skipped = config.values.get("mlp_only_layers") or []
    if layer in skipped or (layer + 1) % config.integer("decoder_sparse_step", 1):
        return dense
    counted = "num_local_experts" if config.has("num_local_experts") else "num_experts"
    count, top_k = config.experts(config.size(counted), config.integer("num_experts_per_tok", 2))
    wide = kind in ("mixtral", "minimax_m2")
    shared_size = config.integer("shared_expert_intermediate_size", 0, least=0)
    return FfnShape(
        num_experts=count,
        top_k=top_k,
        expert_size=config.size("intermediate_size" if wide else "moe_intermediate_size"),
        num_shared=1 if shared_size else 0,
        shared_size=shared_size,
    )


def _windows(config: Noted) -> list[int]:
    """Each layer's sliding window, 0 for none; empty where no layer has one."""
    kind = str(config.values["model_type"])
    if not config.has("sliding_window"):
        return []
    if kind.startswith("qwen") and not config.flag("use_sliding_window", False):
        return []
    window, count = config.size("sliding_window"), config.layers()
    types = config.values.get("layer_types")
    if types is None and kind.startswith("qwen"):
        first = config.integer("max_window_layers", 28, least=0)
        return [window if i >= first else 0 for i in range(count)]
    return [window if each == "sliding_attention" else 0 for each in _types(config, types, count)]


def _types(config: Noted, types: Any, count: int, default: str = "sliding_attention") -> list[str]:
    known = {"full_attention", "sliding_attention", "chunked_attention", "linear_attention"}
    if types is None:
        return [default] * count
    if not isinstance(types, list) or len(types) != count:
        raise config.wrong("layer_types", f"must list {count} layers")
    for each in types:
        if each not in known:
            raise config.wrong("layer_types", f"has {each!r}; known are {', '.join(sorted(known))}")
    return types


def read_deepseek_shape(config: Noted) -> ModelShape:
    """DeepSeek-V2/V3 and Kimi K2: latent attention, shared experts, the first layers dense."""
    heads = config.size("num_attention_heads")
    rope_dim, nope_dim = config.size("qk_rope_head_dim"), config.size("qk_nope_head_dim")
    attention = AttentionShape(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=nope_dim + rope_dim,
        value_dim=config.size("v_head_dim"),
        query_rank=config.size("q_lora_rank") if config.has("q_lora_rank") else 0,
        latent_rank=config.size("kv_lora_rank"),
        rope_dim=rope_dim,
    )
    dense = FfnShape(dense_size=config.size("intermediate_size"))
    if not config.has("n_routed_experts"):
        return config.shape([(attention, dense)] * config.layers())
    count, top_k = config.experts(config.size("n_routed_experts"), config.size("num_experts_per_tok"))
    size, shared = config.size("moe_intermediate_size"), config.integer("n_shared_experts", 0, least=0)
    moe = FfnShape(
        num_experts=count, top_k=top_k, expert_size=size, num_shared=shared, shared_size=shared * size
    )
    first, step = config.integer("first_k_dense_replace", 0, least=0), config.integer("moe_layer_freq", 1)
    return config.shape(
        [(attention, moe if i >= first and i % step == 0 else dense) for i in range(config.layers())]
    )


def read_llama4_shape(config: Noted) -> ModelShape:
    """Llama 4: every fourth layer attends to all, the others inside chunks; experts every few layers."""
    attention, count = config.grouped(), config.layers()
    chunk = config.size("attention_chunk_size", 8192)
    chunked = msgspec.structs.replace(attention, kind="chunk", window=chunk)
    types = config.values.get("layer_types")
    if types is None:
        every = config.integer("no_rope_layer_interval", 4)
        types = ["full_attention" if (i + 1) % every == 0 else "chunked_attention" for i in range(count)]
    types = _types(config, types, count)
    experts, top_k = config.experts(config.size("num_local_experts"), config.size("num_experts_per_tok"))
    size, step = config.size("intermediate_size"), config.integer("interleave_moe_layer_step", 1)
    moe = FfnShape(num_experts=experts, top_k=top_k, expert_size=size, num_shared=1, shared_size=size)
    dense = FfnShape(dense_size=config.size("intermediate_size_mlp"))
    chosen = config.values.get("moe_layers")
    return config.shape(
        [
            (
                attention if types[i] == "full_attention" else chunked,
                moe if (i in chosen if isinstance(chosen, list) else (i + 1) % step == 0) else dense,
            )
            for i in range(count)
        ]
    )


def read_minimax_m1_shape(config: Noted) -> ModelShape:
    """MiniMax-Text-01 and M1: lightning (linear) attention, every eighth layer softmax; experts everywhere."""
    full, count = config.grouped(), config.layers()
    linear = msgspec.structs.replace(full, kind="linear", num_kv_heads=full.num_heads)
    types = config.values.get("attn_type_list")
    if types is None and config.has("layer_types"):
        types = [1 if each == "full_attention" else 0 for each in config.values["layer_types"]]
    if types is None:
        config.assumed.append("attn_type_list is not in the config: every eighth layer is softmax attention")
        types = [int(i % 8 == 7) for i in range(count)]
    if not isinstance(types, list) or len(types) != count or set(types) - {0, 1}:
        raise config.wrong("attn_type_list", f"must list {count} layers as 0 (lightning) or 1 (softmax)")
    experts, top_k = config.experts(config.size("num_local_experts"), config.size("num_experts_per_tok"))
    shared = config.integer("shared_intermediate_size", 0, least=0)
    ffn = FfnShape(
        num_experts=experts,
        top_k=top_k,
        expert_size=config.size("intermediate_size"),
        num_shared=1 if shared else 0,
        shared_size=shared,
    )
    return config.shape([(full if each else linear, ffn) for each in types])


def read_ernie_shape(config: Noted) -> ModelShape:
    """ERNIE 4.5: grouped attention, experts between the dense first layers and the end."""
    attention, count = config.grouped(), config.layers()
    experts, top_k = config.experts(config.size("moe_num_experts"), config.size("moe_k"), "moe_k")
    first = config.integer("moe_layer_start_index", 0, least=0)
    last = config.integer("moe_layer_end_index", count - 1, least=-1) % count
    step = config.integer("moe_layer_interval", 1)
    size, shared = config.size("moe_intermediate_size"), config.integer("moe_num_shared_experts", 0, least=0)
    moe = FfnShape(
        num_experts=experts, top_k=top_k, expert_size=size, num_shared=shared, shared_size=shared * size
    )
    dense = FfnShape(dense_size=config.size("intermediate_size"))
    return config.shape(
        [(attention, moe if first <= i <= last and (i + 1) % step == 0 else dense) for i in range(count)]
    )


def read_pangu_shape(config: Noted) -> ModelShape:
    """Pangu Pro MoE: experts in groups (one a group is chosen), one wide shared expert."""
    experts, top_k = config.experts(config.size("num_experts"), config.size("num_experts_per_tok"))
    shared = config.integer("shared_expert_intermediate_size", 0, least=0)
    ffn = FfnShape(
        num_experts=experts,
        top_k=top_k,
        expert_size=config.size("moe_intermediate_size"),
        num_shared=1 if shared else 0,
        shared_size=shared,
    )
    return config.shape([(config.grouped(), ffn)] * config.layers())


def read_step3_shape(config: Noted) -> ModelShape:
    """Step-3: factorised queries over one shared KV head (MFA), listed MoE layers, one shared expert."""
    head_dim, count = config.size("head_dim"), config.layers()
    attention = AttentionShape(
        num_heads=config.size("num_attention_heads"),
        num_kv_heads=config.integer("num_attention_groups", 1),
        head_dim=head_dim,
        value_dim=head_dim,
        query_rank=config.size("share_q_dim"),
    )
    experts, top_k = config.experts(config.size("moe_num_experts"), config.size("moe_top_k"), "moe_top_k")
    moe = FfnShape(
        num_experts=experts,
        top_k=top_k,
        expert_size=config.size("moe_intermediate_size"),
        num_shared=1,
        shared_size=config.size("share_expert_dim"),
    )
    dense = FfnShape(dense_size=config.size("intermediate_size"))
    chosen = _listed_layers(config, "moe_layers_enum", count)
    old = "max_position_embedding"
    return config.shape(
        [(attention, moe if i in chosen else dense) for i in range(count)], old if config.has(old) else ""
    )


def _listed_layers(config: Noted, field: str, count: int) -> set[int]:
    """Layers as a list or as comma-separated text; all but the first where the config names none."""
    value = config.values.get(field)
    if value is None:
        config.assumed.append(f"{field} is not in the config: all layers but the first have experts")
        return set(range(1, count))
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    try:
        layers = {int(part) for part in parts if part != ""}
    except (TypeError, ValueError) as error:
        raise config.wrong(field, "must list layer numbers") from error
    if layers and not 0 <= min(layers) <= max(layers) < count:
        raise config.wrong(field, f"must name layers from 0 to {count - 1}")
    return layers


def read_gemma_shape(config: Noted) -> ModelShape:
    """Gemma 2 and 3: most layers see a sliding window."""
    attention, count = config.grouped(), config.layers()
    window = config.size("sliding_window", 4096)
    near = msgspec.structs.replace(attention, kind="window", window=window)
    types = config.values.get("layer_types")
    if types is None:
        every = config.integer("sliding_window_pattern", 2 if config.values["model_type"] == "gemma2" else 6)
        types = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(count)]
    dense = FfnShape(dense_size=config.size("intermediate_size"))
    return config.shape(
        [(attention if each == "full_attention" else near, dense) for each in _types(config, types, count)]
    )


def read_gpt_oss_shape(config: Noted) -> ModelShape:
    """gpt-oss: window and full attention in turn, experts in every layer."""
    attention, count = config.grouped(), config.layers()
    near = msgspec.structs.replace(attention, kind="window", window=config.size("sliding_window", 128))
    types = config.values.get("layer_types")
    if types is None:
        types = ["full_attention" if i % 2 else "sliding_attention" for i in range(count)]
    experts, top_k = config.experts(config.size("num_local_experts"), config.size("num_experts_per_tok"))
    ffn = FfnShape(num_experts=experts, top_k=top_k, expert_size=config.size("intermediate_size"))
    return config.shape(
        [(attention if each == "full_attention" else near, ffn) for each in _types(config, types, count)]
    )
