"""DeepSeek-V2 (arXiv 2405.04434) and V3 (2412.19437): latent attention, dense layers first, then experts."""

from mortice.models.deepseek import weights
from mortice.models.layers.decoder import MLP, Attention
from mortice.models.layers.experts import MixtureOfExperts
from mortice.models.layers.latent import LatentAttention
from mortice.models.layers.rotary import Rotary
from mortice.models.llama.model import Llama


class DeepSeek(Llama):
    def build_attention(self, layer: int, rotary: Rotary) -> Attention:
        return LatentAttention(self.spec, layer, weights.attention_names(layer), rotary, self.builder)

    def build_mlp(self, layer: int) -> MLP:
        if not self.spec.has_experts(layer):
            return super().build_mlp(layer)
        return MixtureOfExperts(self.spec, weights.moe_names(layer), self.builder)

    def ignored(self, name: str) -> bool:
        return weights.is_extra_layer(name, self.spec.num_layers) or super().ignored(name)
