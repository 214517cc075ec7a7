"""Reads a `ModelSpec` out of the dictionary of a Hugging Face `config.json`.

Both spellings of rotary settings are understood: `rope_theta` beside `rope_scaling`, and the newer
`rope_parameters`.
"""

import math
from collections.abc import Callable
from typing import Any, cast

from mortice.specs.errors import RequestError
from mortice.specs.model import AttentionSpec, LatentSpec, ModelSpec, MoESpec, RopeKind, RopeSpec, Router

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "mixtral": "mixtral",
    "deepseek_v2": "deepseek",
    "deepseek_v3": "deepseek",
    "step3_text": "step3",
    "step3_vl": "step3",
    "gemma3_text": "gemma3",
    "gemma3": "gemma3",
}
NESTED = {"step3_vl": "step3_text", "gemma3": "gemma3_text"}  # a vision wrapper whose text_config we serve


class Config:
    """A dictionary whose readers say which field is wrong."""

    def __init__(self, values: dict[str, Any], prefix: str = "") -> None:
        self.values = values
        self.prefix = prefix

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def wrong(self, name: str, why: str) -> RequestError:
        return RequestError(f"config: {self.prefix}{name} {why}", param=self.prefix + name)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise self.wrong(name, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, f"must be an integer, got {value!r}")
        if value < least:
            raise self.wrong(name, f"must be at least {least}, got {value}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise self.wrong(name, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(name, f"must be a number, got {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, f"must be true or false, got {value!r}")
        return value

    def nested(self, name: str) -> "Config":
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise self.wrong(name, f"must be an object, got {value!r}")
        return Config(value, f"{self.prefix}{name}.")


def read_model(values: dict[str, Any]) -> ModelSpec:
    """The spec of a `config.json`. Raises RequestError naming the first field that is missing, wrong or
    unsupported."""
    config = Config(values)
    kind = values.get("model_type")
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise config.wrong("model_type", f"is {kind!r}; supported are {known}")
    if kind in NESTED:
        text = config.nested("text_config")
        outer: dict[str, Any] = {k: values[k] for k in ("eos_token_id", "tie_word_embeddings") if k in values}
        config = Config({**outer, **text.values, "model_type": NESTED[kind]}, text.prefix)
        kind = NESTED[kind]
    readers: dict[str, Callable[[Config], ModelSpec]] = {
        "deepseek": read_deepseek,
        "step3": read_step3,
        "gemma3": read_gemma3,
    }
    spec = readers.get(ARCHITECTURES[kind], read_llama_like)(config)
    check(spec, config)
    return spec


def check(spec: ModelSpec, config: Config) -> None:
    """What no architecture here can do, whichever reader ran."""
    attention = spec.attention
    if attention.num_heads % attention.num_kv_heads:
        raise config.wrong(
            "num_key_value_heads", f"({attention.num_kv_heads}) must divide {attention.num_heads}"
        )
    if spec.rope.dim % 2:
        raise config.wrong("head_dim", "must be even: rotary features come in pairs")
    if config.values.get("quantization_config"):
        raise config.wrong("quantization_config", "is not supported: use an unquantised or a GGUF checkpoint")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.has(name):
            raise config.wrong(name, "is not supported")


def common(config: Config) -> dict[str, Any]:
    """The fields that every architecture spells alike."""
    eos = config.values.get("eos_token_id")
    eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(token, int) for token in eos_ids):
        raise config.wrong("eos_token_id", f"must be an integer or a list of them, got {eos!r}")
    bos = config.values.get("bos_token_id")
    dtype = config.values.get("dtype") or config.values.get("torch_dtype") or "float32"
    return {
        "architecture": ARCHITECTURES[config.values["model_type"]],
        "num_layers": config.integer("num_hidden_layers"),
        "hidden_size": config.integer("hidden_size"),
        "intermediate_size": config.integer("intermediate_size"),
        "vocab_size": config.integer("vocab_size"),
        "eos_token_ids": tuple(eos_ids),
        "bos_token_id": bos if isinstance(bos, int) else None,
        "norm_eps": config.number("rms_norm_eps", 1e-6),
        "tie_embeddings": config.flag("tie_word_embeddings", False),
        "dtype": str(dtype).removeprefix("torch."),
    }


def read_activation(config: Config, name: str = "hidden_act", default: str = "silu") -> str:
    activation = config.values.get(name) or default
    names = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
    if activation not in names:
        raise config.wrong(name, f"is {activation!r}; supported are {', '.join(names)}")
    return names[activation]


def read_rope(
    config: Config, dim: int, context: int, *, theta: float = 10_000.0, interleaved: bool = False
) -> RopeSpec:
    """`context` is max_position_embeddings, the default for the trained context of a stretched model."""
    scaling = (
        config.nested("rope_parameters") if config.has("rope_parameters") else config.nested("rope_scaling")
    )
    theta = scaling.number("rope_theta", config.number("rope_theta", theta))
    return scaled_rope(scaling, dim, context, theta, interleaved)


def scaled_rope(scaling: Config, dim: int, context: int, theta: float, interleaved: bool = False) -> RopeSpec:
    kind = scaling.values.get("rope_type") or scaling.values.get("type") or "default"
    if kind not in ("default", "linear", "dynamic", "llama3", "yarn"):
        raise scaling.wrong("rope_type", f"is {kind!r}; supported are default, linear, dynamic, llama3, yarn")
    if scaling.number("partial_rotary_factor", 1.0) != 1.0:
        raise scaling.wrong("partial_rotary_factor", "other than 1 is not supported")
    if theta <= 0:
        raise scaling.wrong("rope_theta", "must be positive")
    factor = 1.0
    if kind != "default":
        original = scaling.integer("original_max_position_embeddings", context)
        factor = scaling.number("factor", context / original if kind == "yarn" else None)
        if factor < 1:
            raise scaling.wrong("factor", f"must be at least 1, got {factor}")
    return RopeSpec(
        dim=dim,
        theta=theta,
        kind=cast(RopeKind, kind),
        factor=factor,
        original_context=context
        if kind == "dynamic"
        else scaling.integer("original_max_position_embeddings", context),
        low_freq_factor=scaling.number("low_freq_factor", 1.0),
        high_freq_factor=scaling.number("high_freq_factor", 4.0),
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        attention_factor=yarn_attention_factor(scaling, factor) if kind == "yarn" else 1.0,
        truncate=scaling.flag("truncate", True),
        interleaved=interleaved,
    )


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """How much sharper attention must be after stretching by `factor` (YaRN, arXiv 2309.00071, section
    3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_attention_factor(scaling: Config, factor: float) -> float:
    if scaling.has("attention_factor"):
        return scaling.number("attention_factor")
    mscale, all_dim = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    if mscale and all_dim:
        return yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    return yarn_mscale(factor)


def stretched(context: int, rope: RopeSpec) -> int:
    """Positions that can be served: max_position_embeddings, times the factor where the config does not
    count it in."""
    return int(context * rope.factor) if rope.kind in ("dynamic", "linear") else context


def read_llama_like(config: Config) -> ModelSpec:
    """Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE, Mixtral: grouped attention, gated MLP or experts."""
    kind = config.values["model_type"]
    fields = common(config)
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
        activation=cast(Any, read_activation(config)),
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
    fields = common(config)
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
        activation=cast(Any, read_activation(config)),
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
    fields = common(config)
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
        activation=cast(Any, read_activation(config)),
    )


def read_gemma3(config: Config) -> ModelSpec:
    """Gemma-3: local and global layers with their own theta, norms on both sides of each block."""
    defaults = {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262_208}
    defaults |= {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    config = Config(
        {**defaults, "tie_word_embeddings": True, "eos_token_id": 1, **config.values}, config.prefix
    )
    fields = common(config)
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
        activation=cast(Any, read_activation(config, "hidden_activation", "gelu_pytorch_tanh")),
        sandwich_norms=True,
        embedding_scale=fields["hidden_size"] ** 0.5,
    )
