"""The gated MLP: down(act(gate(x)) * up(x))."""

from typing import NamedTuple

from torch import Tensor

from mortice.models.builder import Builder, Piece
from mortice.models.step import StepInput
from mortice.ops.activation import ACTIVATIONS, by_rows


class MLPNames(NamedTuple):
    gate: str
    up: str
    down: str


class GatedMLP:
    def __init__(
        self,
        hidden: int,
        size: int,
        activation: str,
        names: MLPNames,
        builder: Builder,
        *,
        bias: bool = False,
    ) -> None:
        self.activation = ACTIVATIONS[activation]
        self.gate_up = builder.linear([Piece(names.gate, size), Piece(names.up, size)], hidden, bias=bias)
        self.down = builder.linear([Piece(names.down, hidden)], size, bias=bias)

    def __call__(self, x: Tensor, step: StepInput) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        wide = self.gate_up(x, step)
        y = by_rows(self.activation, wide) if step.deterministic else self.activation(wide)
        return self.down(y, step)
