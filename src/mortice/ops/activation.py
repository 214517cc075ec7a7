"""Gated activations of an MLP whose gate and up projections are one matrix."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mortice.ops.compiled import kernels_for
from mortice.ops.kernels.elementwise import geglu, swiglu
from mortice.ops.rows import SERIAL
from mortice.ops.tiled import tiled_on_cpu


def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 * I] to [T, I]: silu(gate) * up, gate in the first half."""
    compiled = kernels_for(gate_up)
    if compiled is not None:
        return compiled.silu_mul(gate_up)
    if gate_up.dtype is torch.float32 and gate_up.dim() == 2 and tiled_on_cpu(gate_up):
        y: Tensor = swiglu(gate_up)
        return y
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 * I] to [T, I]: gelu(gate) * up, with gelu's tanh approximation."""
    if gate_up.dim() == 2 and tiled_on_cpu(gate_up):
        y: Tensor = geglu(gate_up)
        return y
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


def by_rows(activation: Callable[[Tensor], Tensor], gate_up: Tensor) -> Tensor:
    """activation(gate_up), in pieces so small that torch keeps each on one thread: see
    deterministic_attention."""
    rows = max(1, SERIAL // gate_up.shape[1])
    return torch.cat([activation(piece) for piece in gate_up.split(rows)])


ACTIVATIONS = {"silu": silu_mul, "gelu_tanh": gelu_mul}
