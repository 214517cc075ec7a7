"""Llama (arXiv 2307.09288, 2407.21783): grouped attention with rotary positions, gated MLP, RMS norms before
both.

Architectures that keep this frame and change the attention or the MLP override the method that builds it.
"""

from mortice.models.causal_lm import CausalLM
from mortice.models.layers.attention import GroupedAttention
from mortice.models.layers.decoder import MLP, Attention, DecoderLayer
from mortice.models.layers.mlp import GatedMLP
from mortice.models.layers.rotary import Rotary
from mortice.models.llama import weights


class Llama(CausalLM):
    def build_layer(self, layer: int, rotary: Rotary) -> DecoderLayer:
        spec, builder = self.spec, self.builder
        return DecoderLayer(
            attention_norm=builder.norm(weights.attention_norm(layer), spec.hidden_size),
            attention=self.build_attention(layer, rotary),
            mlp_norm=builder.norm(weights.mlp_norm(layer), spec.hidden_size),
            mlp=self.build_mlp(layer),
            eps=spec.norm_eps,
        )

    def build_attention(self, layer: int, rotary: Rotary) -> Attention:
        return GroupedAttention(self.spec, layer, weights.attention_names(layer), rotary, self.builder)

    def build_mlp(self, layer: int) -> MLP:
        spec = self.spec
        return GatedMLP(
            spec.hidden_size,
            spec.intermediate_size,
            spec.activation,
            weights.mlp_names(layer),
            self.builder,
            bias=spec.mlp_bias,
        )
