"""Metadata of a GGUF file, as the dictionary that a Hugging Face `config.json` of the same model would
hold."""

from collections.abc import Mapping
from typing import Any

from mortice.specs.errors import RequestError

NAMES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "vocab_size": "vocab_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma3": "gemma3_text",
}


def gguf_config(metadata: Mapping[str, Any], tensor_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """`metadata`: key to value; arrays may be left out. `tensor_shapes`: name to [rows, columns], as in
    PyTorch.

    Raises RequestError for an architecture that has no model here.
    """
    family = metadata.get("general.architecture")
    if family not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise RequestError(
            f"GGUF architecture {family!r} is not supported; supported are {known}", param="model"
        )
    config: dict[str, Any] = {"model_type": ARCHITECTURES[family]}
    for key, name in NAMES.items():
        if (value := metadata.get(f"{family}.{key}")) is not None:
            config[name] = value
    if family == "llama" and config.get("num_experts"):
        config["model_type"] = "mixtral"
    if family == "qwen3moe":
        config["norm_topk_prob"] = True  # the file does not say; every published model of the family does so
    if family == "gemma3":
        widest = (
            config.get("num_hidden_layers") == 62
        )  # the 27B model scales by width per head, the others by head size
        per_head = config.get("hidden_size", 0) // max(1, config.get("num_attention_heads", 1))
        config["query_pre_attn_scalar"] = per_head if widest else config.get("head_dim", 256)
    if "token_embd.weight" in tensor_shapes:
        config["vocab_size"] = tensor_shapes["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in tensor_shapes
    scaling = metadata.get(f"{family}.rope.scaling.type")
    if scaling not in (None, "none"):
        config["rope_scaling"] = {
            "rope_type": scaling,
            "factor": metadata.get(f"{family}.rope.scaling.factor"),
            "original_max_position_embeddings": metadata.get(
                f"{family}.rope.scaling.original_context_length"
            ),
        }
    for key, name in (("eos_token_id", "eos_token_id"), ("bos_token_id", "bos_token_id")):
        if (token := metadata.get(f"tokenizer.ggml.{key}")) is not None:
            config[name] = token
    ends = {config["eos_token_id"]} if "eos_token_id" in config else set()
    ends |= {metadata[key] for key in ("tokenizer.ggml.eot_token_id",) if key in metadata}
    config["eos_token_id"] = sorted(ends)
    config["dtype"] = "bfloat16"
    return config
