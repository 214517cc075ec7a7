"""Reads a `ModelShape` out of the dictionary of a Hugging Face `config.json`, for every family the planner knows."""

from collections.abc import Callable
from typing import Any

from mortice.specs.model_fields import Config
from mortice.specs.shape import ModelShape
from mortice.specs.shape_families import (
    DENSE,
    read_deepseek_shape,
    read_ernie_shape,
    read_gemma_shape,
    read_gpt_oss_shape,
    read_grouped_shape,
    read_llama4_shape,
    read_minimax_m1_shape,
    read_pangu_shape,
    read_step3_shape,
)
from mortice.specs.shape_fields import Noted

SHAPE_READERS: dict[str, Callable[[Noted], ModelShape]] = {
    **dict.fromkeys(
        (*DENSE, "qwen2_moe", "qwen3_moe", "mixtral", "glm4_moe", "minimax_m2"),
        read_grouped_shape,
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "kimi_k2"), read_deepseek_shape),
    **dict.fromkeys(("minimax_m1", "minimax", "minimax_text_01"), read_minimax_m1_shape),
    **dict.fromkeys(("pangu_pro_moe", "PanguProMoE"), read_pangu_shape),
    **dict.fromkeys(("gemma2", "gemma3_text"), read_gemma_shape),
    "llama4_text": read_llama4_shape,
    "ernie4_5_moe": read_ernie_shape,
    "step3_text": read_step3_shape,
    "gpt_oss": read_gpt_oss_shape,
}
WRAPPED = {  # a multimodal wrapper -> what its text_config is where that names no type
    "step3_vl": "step3_text",
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "kimi_k25": "kimi_k2",
}


def read_shape(values: dict[str, Any], name: str) -> ModelShape:
    """The shape of a `config.json`. Raises RequestError naming the first field that is missing, wrong or of an
    unknown family; what it had to assume stands in `ModelShape.assumed`."""
    config = Config(values)
    kind = values.get("model_type")
    prefix = ""
    if kind in WRAPPED:
        text = config.nested("text_config")
        kind = text.values.get("model_type", WRAPPED[kind])
        kept = {k: values[k] for k in ("tie_word_embeddings", "quantization_config") if k in values}
        values, prefix = kept | text.values | {"model_type": kind}, "text_config."
    if kind not in SHAPE_READERS:
        known = ", ".join(sorted([*SHAPE_READERS, *WRAPPED]))
        raise config.wrong("model_type", f"is {kind!r}; supported are {known}")
    noted = Noted(values, name, prefix)
    return SHAPE_READERS[kind](noted)
