"""Gemma-3 (arXiv 2503.19786): layers with a window between layers without, norms before and after each block.

The window's layers rotate with a theta of their own; norms multiply by 1 + w; embeddings are scaled by
sqrt(hidden).
"""

from torch import Tensor

from mortice.models.causal_lm import CausalLM
from mortice.models.gemma3 import weights
from mortice.models.layers.attention import GroupedAttention
from mortice.models.layers.decoder import DecoderLayer
from mortice.models.layers.mlp import GatedMLP
from mortice.models.layers.rotary import Rotary
from mortice.models.llama.weights import attention_names, mlp_names


class Gemma3(CausalLM):
    def build_layer(self, layer: int, rotary: Rotary) -> DecoderLayer:
        spec, builder = self.spec, self.builder

        def norm(name: str) -> Tensor:
            return builder.norm(weights.norm(layer, name), spec.hidden_size, spec.norm_offset)

        return DecoderLayer(
            attention_norm=norm(weights.ATTENTION_NORM),
            attention=GroupedAttention(spec, layer, attention_names(layer), rotary, builder),
            attention_post_norm=norm(weights.ATTENTION_POST_NORM),
            mlp_norm=norm(weights.MLP_NORM),
            mlp=GatedMLP(
                spec.hidden_size, spec.intermediate_size, spec.activation, mlp_names(layer), builder
            ),
            mlp_post_norm=norm(weights.MLP_POST_NORM),
            eps=spec.norm_eps,
        )
