"""RMS norm: x / sqrt(mean(x^2) + eps) * weight, the mean taken in float32 (arXiv 1910.07467)."""

from torch import Tensor
from torch.nn import functional as F

from mortice.ops.compiled import kernels_for
from mortice.ops.kernels.norm import rms_norm as tiled_rms_norm
from mortice.ops.tiled import tiled_on_cpu


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` [..., D], `weight` [D] in x's dtype, or in float32 where rounding it would lose what it says (1 +
    w)."""
    if weight.dtype == x.dtype:
        compiled = kernels_for(x)
        if compiled is not None and x.dim() == 2 and x.stride(1) == 1:
            return compiled.add_rms_norm(x, None, weight, eps)
        if x.dim() == 2 and tiled_on_cpu(x):
            y: Tensor = tiled_rms_norm(x, weight, eps)
            return y
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)


def add_rms_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x += added, both [T, D], then rms_norm(x)."""
    compiled = kernels_for(x)
    if compiled is not None and weight.dtype == x.dtype and added.is_contiguous():
        return compiled.add_rms_norm(x, added, weight, eps)
    x += added
    return rms_norm(x, weight, eps)
