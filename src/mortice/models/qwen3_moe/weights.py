"""Checkpoint names of a Qwen3-MoE layer, where they differ from Llama's."""

from mortice.models.layers.experts import MoENames
from mortice.models.layers.mlp import MLPNames


def moe_names(layer: int) -> MoENames:
    at = f"model.layers.{layer}.mlp"
    expert = f"{at}.experts.{{}}"
    experts = MLPNames(f"{expert}.gate_proj", f"{expert}.up_proj", f"{expert}.down_proj")
    return MoENames(gate=f"{at}.gate", bias="", experts=experts, shared=None)
