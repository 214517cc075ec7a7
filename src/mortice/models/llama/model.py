"""Llama (arXiv 2307.09288, 2407.21783): grouped attention with rotary positions, gated MLP, RMS norms before
both."""

from mortice.models.causal_lm import CausalLM
from mortice.models.layers.attention import GroupedAttention
from mortice.models.layers.decoder import DecoderLayer
from mortice.models.layers.mlp import GatedMLP
from mortice.models.layers.rotary import Rotary
from mortice.models.llama import weights


class Llama(CausalLM):
    def build_layer(self, layer: int, rotary: Rotary) -> DecoderLayer:
        spec, builder = self.spec, self.builder
        return DecoderLayer(
            attention_norm=builder.norm(weights.attention_norm(layer), spec.hidden_size),
            attention=GroupedAttention(spec, layer, weights.attention_names(layer), rotary, builder),
            mlp_norm=builder.norm(weights.mlp_norm(layer), spec.hidden_size),
            mlp=GatedMLP(
                spec.hidden_size,
                spec.intermediate_size,
                spec.activation,
                weights.mlp_names(layer),
                builder,
                bias=spec.mlp_bias,
            ),
            eps=spec.norm_eps,
        )
