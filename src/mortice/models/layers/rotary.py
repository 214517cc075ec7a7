"""The rotary table of a RopeSpec, and its rows for a step."""

from functools import partial

import torch
from torch import Tensor

from mortice.models.step import StepInput
from mortice.ops import rope
from mortice.specs.model import RopeSpec


def rope_table(spec: RopeSpec, dtype: torch.dtype, device: str) -> rope.RopeTable:
    plain = rope.default_frequencies(spec.dim, spec.theta)
    if spec.divisors:
        plain = plain / torch.tensor(spec.divisors)
    match spec.kind:
        case "default":
            frequencies = plain
        case "linear":
            frequencies = plain / spec.factor
        case "llama3":
            low, high = spec.low_freq_factor, spec.high_freq_factor
            frequencies = rope.llama3_frequencies(plain, spec.factor, low, high, spec.original_context)
        case "yarn":
            frequencies = rope.yarn_frequencies(
                spec.dim,
                spec.theta,
                spec.factor,
                spec.beta_fast,
                spec.beta_slow,
                spec.original_context,
                spec.truncate,
            )
        case "dynamic":
            by_position = partial(
                rope.dynamic_frequencies,
                dim=spec.dim,
                theta=spec.theta,
                factor=spec.factor,
                original=spec.original_context,
            )
            return rope.RopeTable(by_position, spec.attention_factor, dtype, device)
    return rope.RopeTable(frequencies, spec.attention_factor, dtype, device)


class Rotary:
    """The rotation of one kind of layer; all layers of the kind share the object and, in a step, its rows."""

    def __init__(self, spec: RopeSpec, dtype: torch.dtype, device: str) -> None:
        self.table = rope_table(spec, dtype, device)

    def rows(self, step: StepInput) -> tuple[Tensor, Tensor]:
        found = step.cache.get(self)
        if found is None:
            found = step.cache[self] = self.table.rows(step.positions, max(step.context_lens, default=1))
        return found

    def __call__(self, x: Tensor, step: StepInput) -> Tensor:
        """Turn `x` [T, heads, dim]."""
        cos, sin = self.rows(step)
        return rope.rotate(x, cos, sin)
