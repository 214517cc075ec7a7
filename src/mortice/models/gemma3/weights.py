"""Checkpoint names of a Gemma-3 layer. A vision checkpoint holds the text model under a prefix and is read
too."""

ATTENTION_NORM = "input_layernorm"
ATTENTION_POST_NORM = "post_attention_layernorm"
MLP_NORM = "pre_feedforward_layernorm"
MLP_POST_NORM = "post_feedforward_layernorm"


def norm(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{name}.weight"
