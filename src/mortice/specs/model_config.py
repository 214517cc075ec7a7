"""Reads a `ModelSpec` out of the dictionary of a Hugging Face `config.json`.

Both spellings of rotary settings are understood: `rope_theta` beside `rope_scaling`, and the newer
`rope_parameters`.
"""

from collections.abc import Callable
from typing import Any

from mortice.specs.model import ModelSpec
from mortice.specs.model_families import read_deepseek, read_gemma3, read_llama_like, read_step3
from mortice.specs.model_fields import Config

READERS: dict[str, Callable[[Config], ModelSpec]] = {
    "llama": read_llama_like,
    "mistral": read_llama_like,
    "qwen2": read_llama_like,
    "qwen3": read_llama_like,
    "qwen3_moe": read_llama_like,
    "mixtral": read_llama_like,
    "deepseek_v2": read_deepseek,
    "deepseek_v3": read_deepseek,
    "step3_text": read_step3,
    "gemma3_text": read_gemma3,
}
NESTED = {"step3_vl": "step3_text", "gemma3": "gemma3_text"}  # a vision wrapper whose text_config we serve


def read_model(values: dict[str, Any]) -> ModelSpec:
    """The spec of a `config.json`. Raises RequestError naming the first field that is missing, wrong or
    unsupported."""
    config = Config(values)
    kind = values.get("model_type")
    if kind in NESTED:
        text = config.nested("text_config")
        outer: dict[str, Any] = {k: values[k] for k in ("eos_token_id", "tie_word_embeddings") if k in values}
        kind = NESTED[kind]
        config = Config({**outer, **text.values, "model_type": kind}, text.prefix)
    if kind not in READERS:
        known = ", ".join(sorted([*READERS, *NESTED]))
        raise config.wrong("model_type", f"is {kind!r}; supported are {known}")
    spec = READERS[kind](config)
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
