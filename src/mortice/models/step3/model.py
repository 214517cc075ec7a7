"""Step-3's language model (arXiv 2507.19427): factorised attention; experts beside one shared expert in most
layers."""

from mortice.models.layers.decoder import MLP, Attention
from mortice.models.layers.experts import MixtureOfExperts
from mortice.models.layers.factorised import FactorisedAttention
from mortice.models.layers.rotary import Rotary
from mortice.models.llama.model import Llama
from mortice.models.source import Source, StackedExperts
from mortice.models.step3 import weights


class Step3(Llama):
    def build_attention(self, layer: int, rotary: Rotary) -> Attention:
        return FactorisedAttention(self.spec, layer, weights.attention_names(layer), rotary, self.builder)

    def build_mlp(self, layer: int) -> MLP:
        if not self.spec.has_experts(layer):
            return super().build_mlp(layer)
        return MixtureOfExperts(self.spec, weights.moe_names(layer), self.builder)

    def adapt(self, source: Source) -> Source:
        return StackedExperts(source)
