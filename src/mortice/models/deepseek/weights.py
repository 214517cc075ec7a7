"""Checkpoint names of a DeepSeek layer."""

from mortice.models.layers.experts import MoENames
from mortice.models.layers.latent import LatentNames
from mortice.models.layers.mlp import MLPNames


def attention_names(layer: int) -> LatentNames:
    at = f"model.layers.{layer}.self_attn"
    return LatentNames(
        q=f"{at}.q_proj",
        q_down=f"{at}.q_a_proj",
        q_norm=f"{at}.q_a_layernorm.weight",
        q_up=f"{at}.q_b_proj",
        kv_down=f"{at}.kv_a_proj_with_mqa",
        kv_norm=f"{at}.kv_a_layernorm.weight",
        kv_up=f"{at}.kv_b_proj",
        out=f"{at}.o_proj",
    )


def moe_names(layer: int) -> MoENames:
    at = f"model.layers.{layer}.mlp"

    def mlp(prefix: str) -> MLPNames:
        return MLPNames(f"{prefix}.gate_proj", f"{prefix}.up_proj", f"{prefix}.down_proj")

    return MoENames(
        gate=f"{at}.gate",
        bias=f"{at}.gate.e_score_correction_bias",
        experts=mlp(f"{at}.experts.{{}}"),
        shared=mlp(f"{at}.shared_experts"),
    )


def is_extra_layer(name: str, num_layers: int) -> bool:
    """Layers past the last are for predicting several tokens at once; decoding one by one does not read
    them."""
    parts = name.split(".")
    return parts[:2] == ["model", "layers"] and parts[2].isdigit() and int(parts[2]) >= num_layers
