"""Mixtral (arXiv 2401.04088): Llama's attention, experts in every layer."""

from mortice.models.layers.decoder import MLP
from mortice.models.layers.experts import MixtureOfExperts
from mortice.models.llama.model import Llama
from mortice.models.mixtral import weights


class Mixtral(Llama):
    def build_mlp(self, layer: int) -> MLP:
        return MixtureOfExperts(self.spec, weights.moe_names(layer), self.builder)
