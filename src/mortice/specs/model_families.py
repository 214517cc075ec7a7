"""One reader a family of architectures: which fields of its config say what."""

from typing import Any, cast

from mortice.specs.model import AttentionSpec, LatentSpec, ModelSpec, MoESpec, Router
from mortice.specs.model_fields import (
    Config,
    common,
    read_activation,
    read_rope,
    scaled_rope,
    stretched,
    yarn_mscale,
)


def read_llama_like(config: Config) -> ModelSpec:
    """Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE, Mixtral: grouped attention, gated MLP or experts."""
    kind = config.values["model_type"]
    fields = common(config, {"mistral": "llama"}.get(kind, kind))
    heads = config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", max(1, fields["hidden_size"] // heads))
    context = config.integer("max_position_embeddings", 2048)
    rope = read_rope(config, head_dim, context, theta=1e6 if kind == "mixtral" else 10_000.0)
    bias = kind == "qwen2" or config.flag("attention_bias", False)
    return ModelSpec(
        **fields,
        max_context=stretched(context, rope),
        attention=AttentionSpec(
            num_heads=heads,
            num_kv_heads=config.integer("num_key_value_heads", heads),
            head_dim=head_dim,
            scale=head_dim**-0.5,
            qkv_bias=bias,
            out_bias=bias and kind != "qwen2",
            qk_norm=kind.startswith("qwen3"),
        ),
        rope=rope,
        windows=read_windows(config, fields["num_layers"], kind),
        moe=read_experts(config, fields["num_layers"]) if kind in ("qwen3_moe", "mixtral") else None,
        activation=read_activation(config),
        mlp_bias=kind == "llama" and config.flag("mlp_bias", False),
    )


def read_windows(config: Config, num_layers: int, kind: str) -> tuple[int, ...]:
    """Each layer's window. Qwen keeps `sliding_window` in its configs and switches it on with another
    field."""
    if kind.startswith("qwen") and not config.flag("use_sliding_window", False):
        return ()
    if not config.has("sliding_window"):
        return ()
    window = config.integer("sliding_window")
    types = config.values.get("layer_types")
    if types is None and kind.startswith("qwen"):
        first = config.integer("max_window_layers", 28, least=0)
        return tuple(window if layer >= first else 0 for layer in range(num_layers))
    return layer_windows(config, types, num_layers, window)


def layer_windows(config: Config, types: Any, num_layers: int, window: int) -> tuple[int, ...]:
    if types is None:
        return (window,) * num_layers
    if not isinstance(types, list) or len(types) != num_layers:
        raise config.wrong("layer_types", f"must list {num_layers} layers")
    if unknown := set(types) - {"sliding_attention", "full_attention"}:
        raise config.wrong(
            "layer_types", f"has {unknown.pop()!r}; supported are sliding_attention, full_attention"
        )
    return tuple(window if name == "sliding_attention" else 0 for name in types)


def read_experts(config: Config, num_layers: int) -> MoESpec:
    """Mixtral's and Qwen3-MoE's experts: softmax over all, the best k, normalised."""
    mixtral = config.values["model_type"] == "mixtral"
    skipped = config.values.get("mlp_only_layers") or []
    step = config.integer("decoder_sparse_step", 1)
    count = config.integer("num_local_experts" if config.has("num_local_experts") else "num_experts")
    top_k = config.integer("num_experts_per_tok", 2)
    if top_k > count:
        raise config.wrong("num_experts_per_tok", f"({top_k}) is more than the experts there are ({count})")
    return MoESpec(
        num_experts=count,
        top_k=top_k,
        expert_size=config.integer("intermediate_size" if mixtral else "moe_intermediate_size"),
        layers=tuple(i for i in range(num_layers) if i not in skipped and (i + 1) % step == 0),
        normalise=mixtral or config.flag("norm_topk_prob", False),
    )


def read_deepseek(config: Config) -> ModelSpec:
    """DeepSeek-V2 and V3: latent attention, grouped routing, shared experts."""
    third = config.values["model_type"] == "deepseek_v3"
    fields = common(config, "deepseek")
    heads = config.integer("num_attention_heads")
    latent = LatentSpec(
        rank=config.integer("kv_lora_rank"),
        nope_dim=config.integer("qk_nope_head_dim"),
        rope_dim=config.integer("qk_rope_head_dim"),
        value_dim=config.integer("v_head_dim"),
    )
    context = config.integer("max_position_embeddings", 2048)
    rope = read_rope(config, latent.rope_dim, context, interleaved=config.flag("rope_interleave", True))
    head_dim = latent.nope_dim + latent.rope_dim
    scale = head_dim**-0.5
    scaling = (
        config.nested("rope_parameters") if config.has("rope_parameters") else config.nested("rope_scaling")
    )
    if rope.kind != "default" and (all_dim := scaling.number("mscale_all_dim", 0.0)):
        scale *= yarn_mscale(rope.factor, all_dim) ** 2
    if config.flag("attention_bias", False):
        raise config.wrong("attention_bias", "is not supported with latent attention")
    return ModelSpec(
        **fields,
        max_context=stretched(context, rope),
        attention=AttentionSpec(
            num_heads=heads,
            num_kv_heads=1,
            head_dim=head_dim,
            scale=scale,
            query_rank=config.integer("q_lora_rank") if config.has("q_lora_rank") else 0,
            latent=latent,
        ),
        rope=rope,
        moe=deepseek_experts(config, fields["num_layers"], third),
        activation=read_activation(config),
    )


def deepseek_experts(config: Config, num_layers: int, third: bool) -> MoESpec | None:
    if not config.has("n_routed_experts"):
        return None
    count, size = config.integer("n_routed_experts"), config.integer("moe_intermediate_size")
    router = "noaux_tc" if third else (config.values.get("topk_method") or "greedy")
    if router not in ("greedy", "group_limited_greedy", "noaux_tc"):
        raise config.wrong(
            "topk_method", f"is {router!r}; supported are greedy, group_limited_greedy, noaux_tc"
        )
    if not third and config.flag("norm_topk_prob", False):
        raise config.wrong("norm_topk_prob", "is not supported for deepseek_v2")
    groups, top_groups = config.integer("n_group", 1), config.integer("topk_group", 1)
    if count % groups or top_groups > groups:
        raise config.wrong(
            "n_group", f"({groups}) must divide {count} experts and be at least topk_group ({top_groups})"
        )
    top_k = config.integer("num_experts_per_tok")
    if top_k > count // groups * top_groups:
        raise config.wrong("num_experts_per_tok", f"({top_k}) is more than the chosen groups hold")
    first, step = config.integer("first_k_dense_replace", 0, least=0), config.integer("moe_layer_freq", 1)
    return MoESpec(
        num_experts=count,
        top_k=top_k,
        expert_size=size,
        layers=tuple(i for i in range(num_layers) if i >= first and i % step == 0),
        shared_size=size * config.integer("n_shared_experts", 0, least=0),
        router=cast(Router, router),
        normalise=third and config.flag("norm_topk_prob", True),
        scaling=config.number("routed_scaling_factor", 1.0),
        num_groups=groups,
        top_groups=top_groups,
    )


def read_step3(config: Config) -> ModelSpec:
    """Step-3's text model: factorised queries over one shared KV head, experts with one shared expert beside
    them."""
    fields = common(config, "step3")
    head_dim = config.integer("head_dim")
    if config.integer("num_attention_groups", 1) != 1:
        raise config.wrong("num_attention_groups", "must be 1: all heads share one KV head")
    context = config.integer(
        "max_position_embedding" if config.has("max_position_embedding") else "max_position_embeddings"
    )
    rope = read_rope(config, head_dim, context, theta=500_000.0)
    layers = config.values.get("moe_layers_enum")
    if isinstance(layers, str):
        layers = [int(part) for part in layers.split(",") if part.strip()]
    return ModelSpec(
        **fields,
        max_context=stretched(context, rope),
        attention=AttentionSpec(
            num_heads=config.integer("num_attention_heads"),
            num_kv_heads=1,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            query_rank=config.integer("share_q_dim"),
        ),
        rope=rope,
        moe=MoESpec(
            num_experts=config.integer("moe_num_experts"),
            top_k=config.integer("moe_top_k"),
            expert_size=config.integer("moe_intermediate_size"),
            layers=tuple(range(1, fields["num_layers"])) if layers is None else tuple(layers),
            shared_size=config.integer("share_expert_dim"),
            normalise=config.flag("norm_expert_weight", False),
        ),
        activation=read_activation(config),
    )


def read_gemma3(config: Config) -> ModelSpec:
    """Gemma-3: local and global layers with their own theta, norms on both sides of each block."""
    defaults = {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262_208}
    defaults |= {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    config = Config(
        {**defaults, "tie_word_embeddings": True, "eos_token_id": 1, **config.values}, config.prefix
    )
    fields = common(config, "gemma3")
    if config.flag("use_bidirectional_attention", False):
        raise config.wrong("use_bidirectional_attention", "is not supported: we generate from left to right")
    heads, head_dim = config.integer("num_attention_heads"), config.integer("head_dim")
    context = config.integer("max_position_embeddings", 131_072)
    types = config.values.get("layer_types")
    if types is None:
        pattern = config.integer("sliding_window_pattern", 6)
        types = [
            "full_attention" if (i + 1) % pattern == 0 else "sliding_attention"
            for i in range(fields["num_layers"])
        ]
    both = config.nested("rope_parameters")
    far, near = both.nested("full_attention"), both.nested("sliding_attention")
    if not far.values:
        far = config.nested("rope_scaling")
    theta = far.number("rope_theta", config.number("rope_theta", 1e6))
    local_theta = near.number("rope_theta", config.number("rope_local_base_freq", 10_000.0))
    bias = config.flag("attention_bias", False)
    return ModelSpec(
        **fields,
        max_context=context,
        attention=AttentionSpec(
            num_heads=heads,
            num_kv_heads=config.integer("num_key_value_heads"),
            head_dim=head_dim,
            scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
            qkv_bias=bias,
            out_bias=bias,
            qk_norm=True,
        ),
        rope=scaled_rope(far, head_dim, context, theta),
        rope_local=scaled_rope(near, head_dim, context, local_theta),
        windows=layer_windows(config, types, fields["num_layers"], config.integer("sliding_window", 4096)),
        norm_offset=1.0,
        activation=read_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        sandwich_norms=True,
        embedding_scale=fields["hidden_size"] ** 0.5,
    )
