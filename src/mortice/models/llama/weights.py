"""Checkpoint names of a Llama layer; Qwen and Mixtral use the same for what they share."""

from mortice.models.layers.attention import AttentionNames
from mortice.models.layers.mlp import MLPNames


def attention_names(layer: int) -> AttentionNames:
    at = f"model.layers.{layer}.self_attn"
    return AttentionNames(
        f"{at}.q_proj",
        f"{at}.k_proj",
        f"{at}.v_proj",
        f"{at}.o_proj",
        f"{at}.q_norm.weight",
        f"{at}.k_norm.weight",
    )


def mlp_names(layer: int) -> MLPNames:
    at = f"model.layers.{layer}.mlp"
    return MLPNames(f"{at}.gate_proj", f"{at}.up_proj", f"{at}.down_proj")


def attention_norm(layer: int) -> str:
    return f"model.layers.{layer}.input_layernorm.weight"


def mlp_norm(layer: int) -> str:
    return f"model.layers.{layer}.post_attention_layernorm.weight"
