"""Row blocks: how a step is made deterministic.

A matrix product's rounding depends on its shape, because libraries choose their kernels by it. In a
deterministic step every product over token rows is done in blocks of exactly `ROWS` rows, so one token meets
one kernel, whoever else is in the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 16
SERIAL = 32_768  # elements up to which torch keeps an elementwise function on one thread


def padded(count: int) -> int:
    """`count` rounded up to whole row blocks, at least one."""
    return max(ROWS, -(-count // ROWS) * ROWS)


def pad_rows(x: Tensor) -> Tensor:
    """`x` [T, ...] with zero rows added up to whole row blocks."""
    missing = padded(len(x)) - len(x)
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x


def by_row_blocks(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """product(x) for x [T, K], computed ROWS rows at a time and cut back to T rows."""
    blocks = [product(block) for block in pad_rows(x).split(ROWS)]
    return (blocks[0] if len(blocks) == 1 else torch.cat(blocks))[: len(x)]
