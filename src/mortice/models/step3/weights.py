"""Checkpoint names of a Step-3 layer. A layer's experts are stacked: one tensor [experts, rows, columns] a
matrix."""

from mortice.models.layers.experts import MoENames
from mortice.models.layers.factorised import FactorisedNames
from mortice.models.layers.mlp import MLPNames


def attention_names(layer: int) -> FactorisedNames:
    at = f"model.layers.{layer}.self_attn"
    return FactorisedNames(
        q_down=f"{at}.q_proj",
        k=f"{at}.k_proj",
        v=f"{at}.v_proj",
        q_norm=f"{at}.inter_norm.weight",
        q_up=f"{at}.wq",
        out=f"{at}.o_proj",
    )


def moe_names(layer: int) -> MoENames:
    at = f"model.layers.{layer}"

    def mlp(prefix: str, ending: str = "") -> MLPNames:
        return MLPNames(
            f"{prefix}.gate_proj{ending}", f"{prefix}.up_proj{ending}", f"{prefix}.down_proj{ending}"
        )

    return MoENames(
        gate=f"{at}.moe.gate", bias="", experts=mlp(f"{at}.moe", ".{}"), shared=mlp(f"{at}.share_expert")
    )
