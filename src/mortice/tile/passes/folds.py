"""A tile that a parallel loop fills only for a reduction to fold it is never made: the loop folds as it goes.

Gives nothing that a later pass needs; the meaning is the same but for the order of a sum.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

from mortice.tile.dtypes import widened
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import buffers, rebuild, walk, with_body
from mortice.tile.passes.pipeline import Pass
from mortice.tile.passes.tiling.patterns import Names, substituted

TOGETHER = 8  # rows at once: as many streams from memory
COMBINE = {"sum": "add", "max": "max", "min": "min"}


def fold(function: s.Function) -> s.Function:
    names = Names.of(function)
    return with_body(
        function, tuple(_launch(x, names) if isinstance(x, s.Launch) else x for x in function.body)
    )


def _launch(launch: s.Launch, names: Names) -> Any:
    uses = Counter(buffer.name for buffer in buffers(launch.body))

    def block(body: s.Block) -> s.Block:
        out: list[s.Stmt] = []
        for x in body:
            made = _folded(out[-1], x, uses, names) if out else None
            if made is not None:
                out[-1:] = [made]
            else:
                out.append(inside(x))
        return tuple(out)

    def inside(x: Any) -> Any:
        match x:
            case s.For() | s.While():
                return replace(x, body=block(x.body))
            case s.If():
                return replace(x, then=block(x.then), otherwise=block(x.otherwise))
        return x

    return replace(launch, body=block(launch.body))


def _folded(loop: s.Stmt, reduce: s.Stmt, uses: Counter[str], names: Names) -> s.Stmt | None:
    """Both as one loop over rows, if the tile between them has no other use than to be made, filled and folded."""
    if not (isinstance(loop, s.Parallel) and isinstance(reduce, s.Reduce) and reduce.op in COMBINE):
        return None
    tile, total = reduce.source.buffer, reduce.target.buffer
    store = loop.body[0] if len(loop.body) == 1 else None
    if not isinstance(store, s.Store) or len(loop.vars) != 2:
        return None
    i, j = loop.vars
    fills = store.buffer == tile and store.indices == (i, j) and loop.extents == tile.shape
    whole = _whole(reduce.source) and _whole(reduce.target) and reduce.axis == 1 and total.on_chip
    if not fills or not whole or uses[tile.name] != 3 or tile.dtype.bits < 32 or total.dtype != tile.dtype:
        return None
    if any(isinstance(node, e.Load) and node.buffer == total for node in walk(store.value)):
        return None
    dtype, span = widened(total.dtype), reduce.span
    rows = int(tile.extents[0])
    together = next(n for n in (TOGETHER, 2, 1) if rows % n == 0)
    first = names.var(i.name)
    lets: list[s.Stmt] = []
    sums: list[s.Stmt] = []
    stores: list[s.Stmt] = []
    for n in range(together):
        at = build.binary("add", first, e.const(n))
        var = e.Var(dtype, names.name("folded"))
        old = build.identity(reduce.op, dtype) if reduce.clear else build.load(total, (at,), span)
        value = build.coerced(substituted(store.value, {i.name: at}), tile.dtype)
        lets.append(s.Let(var, old, mutable=True, span=span))
        sums.append(s.Assign(var, build.binary(COMBINE[reduce.op], var, value, span), span=span))
        stores.append(s.Store(total, (at,), var, span=span))
    inner = s.For(j, e.const(0), loop.extents[1], e.const(1), tuple(sums), "vector", span=loop.span)
    return s.For(first, e.const(0), e.const(rows), e.const(together), (*lets, inner, *stores), span=loop.span)


def _whole(region: e.Region) -> bool:
    shape = region.buffer.shape
    return (
        region.extents == shape
        and all(x == e.const(0) for x in region.offsets)
        and len(region.kept) == len(shape)
    )


def check(function: s.Function) -> None:
    """A folded loop's variable is used in its own row alone."""
    for node in walk(function.body):
        rebuild(node, lambda child: child)


FOLDS = Pass("folds", fold, check, gives=frozenset({"folded"}))
