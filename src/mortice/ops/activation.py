"""Gated activations of an MLP whose gate and up projections are one matrix."""

from torch import Tensor
from torch.nn import functional as F


def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 * I] to [T, I]: silu(gate) * up, gate in the first half."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 * I] to [T, I]: gelu(gate) * up, with gelu's tanh approximation."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


ACTIVATIONS = {"silu": silu_mul, "gelu_tanh": gelu_mul}
