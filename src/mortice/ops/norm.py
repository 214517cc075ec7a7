"""RMS norm: x / sqrt(mean(x^2) + eps) * weight, the mean taken in float32 (arXiv 1910.07467)."""

from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` [..., D], `weight` [D] in x's dtype, or in float32 where rounding it would lose what it says (1 +
    w)."""
    if weight.dtype == x.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)
