"""Checkpoint names of a Mixtral layer, where they differ from Llama's."""

from mortice.models.layers.experts import MoENames
from mortice.models.layers.mlp import MLPNames


def moe_names(layer: int) -> MoENames:
    at = f"model.layers.{layer}.block_sparse_moe"
    expert = f"{at}.experts.{{}}"
    return MoENames(
        gate=f"{at}.gate",
        bias="",
        experts=MLPNames(f"{expert}.w1", f"{expert}.w3", f"{expert}.w2"),
        shared=None,
    )
