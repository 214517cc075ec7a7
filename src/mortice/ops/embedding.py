"""Token embedding."""

import torch
from torch import Tensor


def embed(table: Tensor, input_ids: Tensor, scale: float = 1.0) -> Tensor:
    """Rows of `table` [V, D] for `input_ids` [T]; times `scale`, rounded to the table's dtype first."""
    rows = table.index_select(0, input_ids)
    return rows if scale == 1.0 else rows.mul_(torch.tensor(scale, dtype=table.dtype))
