"""Makes the parts of a model that hold weights, and remembers which checkpoint tensors fill them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mortice.models.source import Slot, Source
from mortice.ops.compiled import GROUP, kernels_for, load
from mortice.ops.linear import DenseWeight, Linear, PackedWeight, PanelWeight, Weight
from mortice.ops.quantized import GroupedWeight, Int4Weight, Int8Weight


@dataclass(frozen=True, slots=True)
class Part:
    """Rows first : first + size of a Linear: what a checkpoint calls one projection, and an adapter can
    change."""

    linear: Linear
    first: int
    piece: "Piece"
    columns: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One projection of a checkpoint: `name`.weight is [size, K]. `order` rearranges its rows as they are
    loaded."""

    name: str
    size: int
    order: Tensor | None = None


Form = Literal["dense", "packed", "int8", "int4"]


class Builder:
    def __init__(self, *, dtype: torch.dtype, form: Form, device: str, keep: bool = False) -> None:
        """`form`: how matrices are held. `keep`: those that the source holds in up to 8 bits stay
        small."""
        self.dtype = dtype
        self.form: Form = form
        # 4 bits are too few for the last layer, whose errors are the model's.
        self.head_form: Form = "int8" if form == "int4" else form
        self.device = device
        self.keep = keep
        self.slots: list[Slot] = []
        self.factors: list[Tensor] = []
        self.parts: dict[str, Part] = {}
        self.linears: list[tuple[Linear, float]] = []

    def vector(self, name: str, size: int, *, offset: float = 0.0, exact: bool = False) -> Tensor:
        """A tensor [size] that holds `name` plus `offset`; `exact`: in float32."""
        held = torch.empty(size, dtype=torch.float32 if exact else self.dtype, device=self.device)

        def fill(source: Source) -> None:
            held.copy_(source.tensor(name) + offset)

        self.slots.append(Slot({name: (size,)}, fill))
        return held

    def norm(self, name: str, size: int, offset: float = 0.0) -> Tensor:
        """The weight of an RMS norm. Where it is an offset plus what is stored, it stays in float32: 1 + w in
        bfloat16 would lose w."""
        return self.vector(name, size, offset=offset, exact=bool(offset))

    def factor(self, name: str, rows: int, columns: int, *, exact: bool = False) -> Tensor:
        """A `matrix` that every token is multiplied by, if not as a Linear."""
        made = self.matrix(name, rows, columns, exact=exact)
        self.factors.append(made)
        return made

    def matrix(self, name: str, rows: int, columns: int, *, exact: bool = False) -> Tensor:
        """A tensor [rows, columns] as it is; `exact`: in float32."""
        dtype = torch.float32 if exact else self.dtype
        held = torch.empty(rows, columns, dtype=dtype, device=self.device)

        def fill(source: Source) -> None:
            held.copy_(source.tensor(name, held.dtype))

        self.slots.append(Slot({name: (rows, columns)}, fill))
        return held

    def linear(
        self,
        pieces: Sequence[Piece],
        columns: int,
        *,
        bias: bool = False,
        form: Form | None = None,
        visits: float = 1.0,
        adaptable: bool = True,
        lookup: bool = False,
    ) -> Linear:
        """One matrix product for several projections of the same input, their rows one below the other.

        `visits`: the share of tokens that go through it. `adaptable`: it sees all rows of a step, so adapters
        that name rows can change it. `lookup`: its `rows` are wanted, too.
        """
        made = Linear()
        self.linears.append((made, visits))
        first = 0
        for piece in pieces:
            if adaptable:
                self.parts[piece.name] = Part(made, first, piece, columns)
            first += piece.size
        shapes: dict[str, tuple[int, ...]] = {f"{p.name}.weight": (p.size, columns) for p in pieces}
        if bias:
            shapes |= {f"{p.name}.bias": (p.size,) for p in pieces}

        def fill(source: Source) -> None:
            weight = self.kept(source, pieces) if self.keep else None
            if weight is None:
                weight = hold(self.stack(source, pieces, "weight", self.dtype), form or self.form)
            table = None
            if lookup and weight.rows(torch.zeros(1, dtype=torch.int64, device=self.device)) is None:
                table = self.stack(source, pieces, "weight", self.dtype).clone()
            made.load(weight, self.stack(source, pieces, "bias", self.dtype).clone() if bias else None, table)

        self.slots.append(Slot(shapes, fill))
        return made

    def stack(self, source: Source, pieces: Sequence[Piece], kind: str, dtype: torch.dtype) -> Tensor:
        found = [arrange(source.tensor(f"{p.name}.{kind}", dtype), p.order) for p in pieces]
        return (torch.cat(found) if len(found) > 1 else found[0]).to(self.device)

    def kept(self, source: Source, pieces: Sequence[Piece]) -> Weight | None:
        """The matrix in no more bits than its source has: 4 as they are, up to 8 in groups of 8. None where it is in
        more, or there is no product for it here."""
        if any(source.bits(f"{p.name}.weight") > 8.5 for p in pieces):
            return None
        compiled = load() if self.dtype is torch.bfloat16 else None
        columns = source.shape(f"{pieces[0].name}.weight")[1]
        stored = [source.codes(f"{p.name}.weight") for p in pieces]
        whole = [part for part in stored if part is not None]
        if len(whole) < len(pieces):
            if compiled is None or columns % GROUP:
                return None
            return GroupedWeight.quantize(self.stack(source, pieces, "weight", torch.float32), 8, compiled)
        codes, scale, zero = (
            torch.cat([arrange(getattr(part, field), p.order) for part, p in zip(whole, pieces, strict=True)])
            for field in ("codes", "scale", "zero")
        )
        if compiled is not None:
            return GroupedWeight(codes, scale, zero - 8 * scale, 4, compiled)
        return Int4Weight(codes, scale, zero, self.dtype) if Int4Weight.fits(*codes.shape) else None


def hold(weight: Tensor, form: Form) -> Weight:
    """A copy of `weight` in the given form; int8 where torch's 4-bit groups do not fit its shape."""
    compiled = kernels_for(weight)
    if compiled is not None and weight.shape[1] % GROUP == 0 and form != "dense":
        if form == "packed":
            return PanelWeight(weight)
        return GroupedWeight.quantize(weight, 8 if form == "int8" else 4, compiled)
    if form == "int4" and Int4Weight.fits(*weight.shape):
        return Int4Weight.quantize(weight)
    if form in ("int4", "int8"):
        return Int8Weight.quantize(weight)
    return PackedWeight(weight) if form == "packed" else DenseWeight(weight.clone())


def arrange(rows: Tensor, order: Tensor | None) -> Tensor:
    return rows if order is None else rows.index_select(0, order)
