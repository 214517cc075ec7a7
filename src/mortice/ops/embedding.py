"""Token embedding."""

import torch
from torch import Tensor


def scale_rows(rows: Tensor, scale: float) -> Tensor:
    """`rows` [T, D] times `scale`, which is rounded to their dtype first; in place."""
    return rows if scale == 1.0 else rows.mul_(torch.tensor(scale, dtype=rows.dtype))
