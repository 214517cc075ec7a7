"""y = x W^T + b, where W may be several matrices stacked by rows and may be kept in one of four forms.

dense   as given; torch's linear
packed  reordered once for oneDNN: at one row the plain call spends half its time on choosing and reordering
int8    one scale a row
int4    groups of 32 with scale and zero point: what GGUF calls Q4_1, and Q4_0 with its zero point written out

LoRA adapters (arXiv 2106.09685) live beside the weight: rows of the batch that name one get x A^T B^T added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mortice.ops.rows import by_row_blocks

Form = Literal["dense", "packed", "int8", "int4"]


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


@dataclass(frozen=True, slots=True)
class LowRank:
    """Adds x down^T up^T to columns first : first + len(up) of the output. The adapter's scale is inside
    `up`."""

    down: Tensor  # [r, K]
    up: Tensor  # [n, r]
    first: int


class Linear:
    """A weight [N, K] in one of the forms, an optional bias [N], and the adapters loaded beside it."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.bias: Tensor | None = None
        self.weight = torch.empty(0)
        self.out_features = self.in_features = 0
        self.adapters: dict[str, list[LowRank]] = {}

    def load(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take over `weight` [N, K] and `bias` [N], already in the dtype of the activations."""
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        if self.form == "packed":
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.weight = weight

    @property
    def weight_bytes(self) -> int:
        """Bytes that one product reads."""
        bias = self.bias.nbytes if self.bias is not None else 0
        if self.form == "packed":
            return self.out_features * self.in_features * 2 + bias
        return self.weight.nbytes + bias

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """`x` [T, K] to [T, N]; row t sees only row t."""
        y = by_row_blocks(self.product, x) if batch.deterministic else self.product(x)
        if self.adapters and batch.adapters:
            self.add_adapters(x, y, batch)
        return y

    def product(self, x: Tensor) -> Tensor:
        if self.form == "packed":
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return y
        return F.linear(x, self.weight, self.bias)

    def add_adapters(self, x: Tensor, y: Tensor, batch: Batch) -> None:
        for chosen in batch.adapters:
            for pair in self.adapters.get(chosen.name, ()):

                def product(rows: Tensor, pair: LowRank = pair) -> Tensor:
                    return F.linear(F.linear(rows, pair.down), pair.up)

                rows = x.index_select(0, chosen.rows)
                delta = by_row_blocks(product, rows) if batch.deterministic else product(rows)
                y[:, pair.first : pair.first + delta.shape[1]].index_add_(0, chosen.rows, delta)
