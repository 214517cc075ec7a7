"""y = x W^T + b, where W may be several matrices stacked by rows, and LoRA adapters beside it.

A weight is held by an object that knows its product: as given (DenseWeight), in panels for the tile kernels
(PanelWeight), in oneDNN's order without them (PackedWeight), or in 8 or 4 bits (ops/quantized.py).
LoRA (arXiv 2106.09685): rows of the batch that name an adapter get x down^T up^T added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mortice.ops.kernels import panels
from mortice.ops.rows import by_row_blocks

# Tiles of products with panels: rows of x by how many there are, columns of W by what divides them.
PANEL_HEIGHTS = (8, 16, 32, 64, 256)
PANEL_DEPTHS = (1536, 1024, 768, 576)  # else 512: what is beyond the last column is copied with zeros


class AdapterRows(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def rows(self) -> Tensor: ...


class Batch(Protocol):
    """What an operator must know of the step it runs in."""

    @property
    def deterministic(self) -> bool: ...
    @property
    def adapters(self) -> Sequence[AdapterRows]: ...


class Weight(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...  # that one product reads
    @property
    def batch_invariant(self) -> bool: ...  # a row's product does not depend on how many rows there are
    def product(self, x: Tensor, bias: Tensor | None) -> Tensor: ...
    def rows(self, ids: Tensor) -> Tensor | None:
        """Rows `ids` [T] of the weight; None where its form does not give them back."""


class DenseWeight:
    batch_invariant = False

    def __init__(self, weight: Tensor) -> None:
        """`weight` [N, K], kept."""
        self.weight = weight
        self.shape = tuple(weight.shape)
        self.nbytes = weight.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, bias)

    def rows(self, ids: Tensor) -> Tensor | None:
        return self.weight.index_select(0, ids)


class PanelWeight:
    """bfloat16 in panels, as a CPU's matrix unit reads it: 1.1 to 1.7 times faster than oneDNN at few rows."""

    batch_invariant = True

    def __init__(self, weight: Tensor) -> None:
        """`weight` [N, K], copied; K must be a multiple of 32."""
        self.packed: Tensor = panels.pack_panels(weight)
        self.shape = tuple(weight.shape)
        self.nbytes = weight.nbytes
        columns = weight.shape[1]
        self.depth = next((d for d in PANEL_DEPTHS if columns % d == 0), 512)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        height = next((h for h in PANEL_HEIGHTS if len(x) <= h), PANEL_HEIGHTS[-1])
        width = 256 if height > 32 else 128 if self.shape[0] > 2048 else 64
        y: Tensor = panels.linear_panels(
            x, self.packed, bias, self.shape[0], BM=height, BN=width, BK=self.depth
        )
        return y

    def rows(self, ids: Tensor) -> Tensor | None:
        found: Tensor = panels.rows_of_panels(self.packed, ids)
        return found


class PackedWeight:
    """bfloat16 in oneDNN's own order. The plain call reorders on every use: 1.5 to 2 times slower at few
    rows."""

    batch_invariant = False

    def __init__(self, weight: Tensor) -> None:
        """`weight` [N, K], copied."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.shape = tuple(weight.shape)
        self.nbytes = weight.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")
        return y

    def rows(self, ids: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True, slots=True)
class LowRank:
    """Adds x down^T up^T to columns first : first + len(up) of the output. The adapter's scale is inside
    `up`."""

    down: Tensor  # [r, K]
    up: Tensor  # [n, r]
    first: int

    def product(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up)


class Linear:
    """A weight [N, K], an optional bias [N], and the adapters loaded beside it. Empty until `load`."""

    def __init__(self) -> None:
        self.weight: Weight = DenseWeight(torch.empty(0, 0))
        self.bias: Tensor | None = None
        self.table: Tensor | None = None
        self.adapters: dict[str, list[LowRank]] = {}

    def load(self, weight: Weight, bias: Tensor | None = None, table: Tensor | None = None) -> None:
        """`table`: the weight as it is, where `rows` is wanted and the weight's form does not give them."""
        self.weight = weight
        self.bias = bias
        self.table = table

    def rows(self, ids: Tensor) -> Tensor:
        """[T, K]: rows `ids` [T] of the weight, in new memory."""
        if self.table is not None:
            return self.table.index_select(0, ids)
        found = self.weight.rows(ids)
        assert found is not None  # else a table was loaded
        return found

    def drop(self) -> None:
        """Empty again, as before the first `load`."""
        self.load(DenseWeight(torch.empty(0, 0)))

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """`x` [T, K] to [T, N]; row t sees only row t."""
        by_blocks = batch.deterministic and not self.weight.batch_invariant
        y = by_row_blocks(self.product, x) if by_blocks else self.weight.product(x, self.bias)
        if batch.adapters and self.adapters:
            self.add_adapters(x, y, batch)
        return y

    def product(self, x: Tensor) -> Tensor:
        return self.weight.product(x, self.bias)

    def add_adapters(self, x: Tensor, y: Tensor, batch: Batch) -> None:
        for chosen in batch.adapters:
            for pair in self.adapters.get(chosen.name, ()):
                rows = x.index_select(0, chosen.rows)
                delta = by_row_blocks(pair.product, rows) if batch.deterministic else pair.product(rows)
                y[:, pair.first : pair.first + delta.shape[1]].index_add_(0, chosen.rows, delta)
