"""Qwen3-MoE (arXiv 2505.09388): Qwen3's attention, experts in most layers."""

from mortice.models.layers.decoder import MLP
from mortice.models.layers.experts import MixtureOfExperts
from mortice.models.llama.model import Llama
from mortice.models.qwen3_moe import weights


class Qwen3Moe(Llama):
    def build_mlp(self, layer: int) -> MLP:
        if not self.spec.has_experts(layer):
            return super().build_mlp(layer)
        return MixtureOfExperts(self.spec, weights.moe_names(layer), self.builder)
