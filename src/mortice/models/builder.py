"""Makes the parts of a model that hold weights, and remembers which checkpoint tensors fill them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mortice.models.source import Slot, Source
from mortice.ops.linear import Form, Linear


@dataclass(frozen=True, slots=True)
class Part:
    """Rows first : first + size of a Linear: what a checkpoint calls one projection, and an adapter can
    change."""

    linear: Linear
    first: int
    size: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One projection of a checkpoint: `name`.weight is [size, K]. `order` rearranges its rows as they are
    loaded."""

    name: str
    size: int
    order: Tensor | None = None


class Builder:
    def __init__(self, *, dtype: torch.dtype, form: Form, device: str) -> None:
        self.dtype = dtype
        self.form: Form = form
        self.head_form: Form = (
            "int8" if form in ("int8", "int4") else form
        )  # 4 bits are too few for the last layer
        self.device = device
        self.slots: list[Slot] = []
        self.parts: dict[str, Part] = {}

    def vector(
        self, name: str, size: int, *, offset: float = 0.0, dtype: torch.dtype | None = None
    ) -> Tensor:
        """A tensor [size] that holds `name` plus `offset`."""
        held = torch.empty(size, dtype=dtype or self.dtype, device=self.device)

        def fill(source: Source) -> None:
            held.copy_(source.tensor(name).to(torch.float32) + offset)

        self.slots.append(Slot({name: (size,)}, fill))
        return held

    def norm(self, name: str, size: int, offset: float = 0.0) -> Tensor:
        """The weight of an RMS norm. Where it is an offset plus what is stored, it stays in float32: 1 + w in
        bfloat16 would lose w."""
        return self.vector(name, size, offset=offset, dtype=torch.float32 if offset else None)

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        """A tensor [rows, columns] that is looked up, not multiplied."""
        held = torch.empty(rows, columns, dtype=self.dtype, device=self.device)

        def fill(source: Source) -> None:
            held.copy_(source.tensor(name))

        self.slots.append(Slot({name: (rows, columns)}, fill))
        return held

    def linear(
        self, pieces: Sequence[Piece], columns: int, *, bias: bool = False, form: Form | None = None
    ) -> Linear:
        """One matrix product for several projections of the same input, their rows one below the other."""
        made = Linear(form or self.form)
        first = 0
        for piece in pieces:
            self.parts[piece.name] = Part(made, first, piece.size)
            first += piece.size
        shapes: dict[str, tuple[int, ...]] = {f"{p.name}.weight": (p.size, columns) for p in pieces}
        if bias:
            shapes |= {f"{p.name}.bias": (p.size,) for p in pieces}

        def stack(source: Source, kind: str) -> Tensor:
            found = [arrange(source.tensor(f"{p.name}.{kind}"), p.order).to(self.dtype) for p in pieces]
            return (torch.cat(found) if len(found) > 1 else found[0].clone()).to(self.device)

        def fill(source: Source) -> None:
            made.load(stack(source, "weight"), stack(source, "bias") if bias else None)

        self.slots.append(Slot(shapes, fill))
        return made


def arrange(rows: Tensor, order: Tensor | None) -> Tensor:
    return rows if order is None else rows.index_select(0, order)
