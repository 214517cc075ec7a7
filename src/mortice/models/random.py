"""Random weights for a spec, so that tests and dry runs need no checkpoint."""

import torch
from torch import Tensor

from mortice.models.architectures import build
from mortice.models.causal_lm import CausalLM
from mortice.models.source import TensorsSource
from mortice.specs.model import ModelSpec


def random_weights(model: CausalLM, seed: int, scale: float = 0.05) -> dict[str, Tensor]:
    """Normal numbers under the checkpoint names the model reads, float32; norm weights lie around what is
    neutral."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for slot in model.builder.slots:
        for name, shape in slot.shapes.items():
            if name not in made:
                neutral = 1.0 - model.spec.norm_offset if name.endswith("norm.weight") else 0.0
                made[name] = torch.randn(shape, generator=generator).mul_(scale).add_(neutral)
    return made


def random_model(
    spec: ModelSpec,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    quantize: str = "none",
    device: str = "cpu",
) -> CausalLM:
    """A model of `spec` whose weights depend on `seed` alone."""
    model = build(spec, dtype=dtype, quantize=quantize, device=device)
    model.fill(TensorsSource(random_weights(model, seed)))
    return model
