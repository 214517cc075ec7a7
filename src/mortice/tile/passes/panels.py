"""Matrices kept in panels: the order in which a CPU's matrix unit reads the weights of a product.

P [N / 32, K / 32, 1024] holds W [N, K], padded with zeros to whole panels. A panel is 32 rows; 32 columns of it are two
halves of 16 rows, each [16 pairs of columns][16 rows][2]. A back end that has no use for the order gets element by
element copies from `expand`, which define it.
"""

from typing import Any

from mortice.tile.dtypes import index
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import transform_block, walk, with_body
from mortice.tile.passes.pipeline import Pass
from mortice.tile.passes.tiling.patterns import Names

SIDE, SIZE = 32, 1024  # rows and columns of a square, elements of it


def place(row: e.Expr, column: e.Expr) -> tuple[e.Expr, e.Expr, e.Expr]:
    """Indices of W [row, column] in its panels."""

    def op(name: str, left: e.Expr, right: int) -> e.Expr:
        return build.binary(name, left, e.const(right))

    inner_row, inner_column = op("mod", row, SIDE), op("mod", column, SIDE)
    half = op("mul", op("floordiv", inner_row, 16), 512)
    pair = op("mul", op("floordiv", inner_column, 2), 32)
    rest = build.binary("add", op("mul", op("mod", inner_row, 16), 2), op("mod", inner_column, 2))
    at = build.binary("add", build.binary("add", half, pair), rest)
    return op("floordiv", row, SIDE), op("floordiv", column, SIDE), at


def squares(offset: e.Expr) -> e.Expr | None:
    """offset / 32 where that is whole by its form; else None."""
    match offset:
        case e.Const():
            return e.const(int(offset.value) // SIDE) if offset.value % SIDE == 0 else None
        case e.Binary(op="mul", left=e.Const(value=factor), right=other) if factor % SIDE == 0:
            return build.binary("mul", other, e.const(int(factor) // SIDE))
        case e.Binary(op="mul", left=other, right=e.Const(value=factor)) if factor % SIDE == 0:
            return build.binary("mul", other, e.const(int(factor) // SIDE))
        case e.Binary(op="add"):
            left, right = squares(offset.left), squares(offset.right)
            return build.binary("add", left, right) if left is not None and right is not None else None
    return None


def by_elements(x: s.Unpack, names: Names) -> s.Stmt:
    """What an Unpack means."""
    i, j = (e.Var(index, names.name(letter)) for letter in ("i", "j"))
    row, column = (
        build.binary("add", build.binary("mul", offset, e.const(SIDE)), var)
        for offset, var in zip(x.source.offsets, (i, j), strict=False)
    )
    value = build.load(x.source.buffer, place(row, column), x.span)
    store = s.Store(x.target.buffer, (i, j), build.coerced(value, x.target.buffer.dtype), span=x.span)
    return s.Parallel((i, j), x.target.shape, (store,), span=x.span)


def expand(function: s.Function) -> s.Function:
    names = Names.of(function)

    def change(x: Any) -> Any:
        return by_elements(x, names) if isinstance(x, s.Unpack) else x

    return with_body(function, transform_block(function.body, change))


def check(function: s.Function) -> None:
    assert not any(isinstance(node, s.Unpack) for node in walk(function.body)), "an Unpack is left"


PANELS = Pass("panels", expand, check, gives=frozenset({"no panels"}))
