"""What is no matrix product, on a machine whose vectors run along a loop: blocks of rows, and within a row one of

- rows: the loops of the body (folds, stores) are vectors, one after the other;
- columns: the last variable is the vector and folds keep a tile of sums, where the last variable counts neighbours in
  memory and the folds' does not;
- flat: no loop in the body; the last variable is the vector.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mortice.tile.dtypes import index
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import transform, walk
from mortice.tile.passes.tiling.machine import Machine
from mortice.tile.passes.tiling.patterns import (
    Fold,
    Names,
    both,
    inlined,
    mentions,
    parse,
    shifted,
    substituted,
    unit_inner,
)

WORK = 16384  # elements that are worth a block
PARTS = 8  # blocks at least, if there are so many rows
COLUMNS = 512  # width of a tile of sums


def form(loop: s.Parallel) -> str:
    if not any(isinstance(x, s.For | s.While) for x in walk(loop.body)):
        return "flat"
    return "columns" if _columns(loop) else "rows"


def _columns(loop: s.Parallel) -> bool:
    """Does the last variable count neighbours in memory where the folds' does not?"""
    items = inlined(parse(loop.body))
    folds = [x for x in items if isinstance(x, Fold)]
    rest = [x for x in items if not isinstance(x, Fold)]
    plain = not any(isinstance(x, s.For | s.While | s.Assign | s.Let) for item in rest for x in walk(item))
    if not folds or not plain or items[: len(folds)] != folds or any(len(x.loops) > 1 for x in folds):
        return False
    last = loop.vars[-1].name
    along = across = 0
    for fold in folds:
        k = fold.loops[0].var.name
        if mentions(fold.loops[0].start, {last}) or mentions(fold.loops[0].stop, {last}):
            return False
        for node in walk(fold.value):
            if isinstance(node, e.Load) and node.indices and unit_inner(node.buffer):
                end = node.indices[-1]
                across += mentions(end, {last}) and any(mentions(i, {k}) for i in node.indices[:-1])
                along += mentions(end, {k}) and any(mentions(i, {last}) for i in node.indices[:-1])
    return across > along


def loops(loop: s.Parallel, machine: Machine, names: Names, when: e.Expr) -> list[s.Stmt]:
    """The launch, and before it a name for how many rows a block takes. when: a condition of sizes for it to run."""
    kind = form(loop)
    inner = loop.vars if kind == "rows" else loop.vars[:-1]
    body: tuple[s.Stmt, ...]
    if kind == "rows":
        body, length = vectorised(loop.body), _length(loop)
    elif kind == "flat":
        body, length = loop.body, loop.extents[-1]
    else:
        body, length = (), build.binary("mul", loop.extents[-1], _length(loop))
    variables: list[e.Var] = []
    grid: list[e.Expr] = []
    if kind != "rows":
        width = machine.width if kind == "flat" else COLUMNS
        var, extent = loop.vars[-1], loop.extents[-1]
        block = names.var(f"{var.name}_block")
        start = build.binary("mul", block, e.const(width))
        stop = build.binary("min", extent, build.binary("add", start, e.const(width)))
        variables.append(block)
        grid.append(build.ceildiv(extent, e.const(width)))
        if kind == "columns":
            body = _sums(loop, start, stop, names)
        else:
            body = (_vector(loop, start, stop, body),)
    before: list[s.Stmt] = []
    if inner:
        var, extent = inner[-1], loop.extents[len(inner) - 1]
        rows = names.var("rows")
        most = build.binary("floordiv", e.const(WORK), build.binary("max", length, e.const(1)))
        share = build.binary("min", build.ceildiv(extent, e.const(PARTS)), most)
        before.append(s.Let(rows, build.binary("max", share, e.const(1)), span=loop.span))
        block = names.var(f"{var.name}_block")
        start = build.binary("mul", block, rows)
        stop = build.binary("min", extent, build.binary("add", start, rows))
        body = (s.For(var, start, stop, e.const(1), body, span=loop.span),)
        variables.append(block)
        grid.append(build.ceildiv(extent, rows))
        for outer, count in zip(reversed(inner[:-1]), reversed(loop.extents[: len(inner) - 1]), strict=True):
            if len(grid) < 3:
                variables.append(outer)
                grid.append(count)
            else:
                body = (s.For(outer, e.const(0), count, e.const(1), body, span=loop.span),)
    grid[0] = build.select(when, grid[0], e.const(0))
    return [*before, s.Launch(tuple(variables), tuple(grid), body, span=loop.span)]


def _vector(loop: s.Parallel, start: e.Expr, stop: e.Expr, body: s.Block) -> s.For:
    kind = "vector" if simple(body) else "serial"
    return s.For(loop.vars[-1], start, stop, e.const(1), body, kind, span=loop.span)


def _sums(loop: s.Parallel, start: e.Expr, stop: e.Expr, names: Names) -> tuple[s.Stmt, ...]:
    """Folds with an element of a tile each for every value of the last variable."""
    items = inlined(parse(loop.body))
    last = loop.vars[-1]
    at = build.binary("sub", last, start)
    free = (False,)
    out: list[s.Stmt] = []
    known: dict[str, e.Expr] = {}
    for fold in (x for x in items if isinstance(x, Fold)):
        shape = (e.const(COLUMNS),)
        tile = e.Buffer(names.name(fold.var.name), fold.var.dtype, shape, "fragment", span=fold.let.span)
        box = e.Region(tile, (e.const(0),), shape, (0,), span=tile.span)
        out += [s.Alloc(tile, span=tile.span), s.Fill(box, fold.let.value, span=tile.span)]
        old = build.load(tile, (at,), fold.let.span, free)
        value = build.binary(fold.op, old, fold.value, fold.let.span)
        store: s.Stmt = s.Store(tile, (at,), value, free, span=fold.let.span)
        if fold.conditions:
            store = s.If(both(list(fold.conditions)), (store,), span=fold.let.span)
        (k,) = fold.loops
        inner = _renamed(_vector(loop, start, stop, (store,)), names)
        out.append(s.For(k.var, k.start, k.stop, k.step, (inner,), span=fold.let.span))
        known[fold.var.name] = old
    rest = tuple(substituted(x, known) for x in items if not isinstance(x, Fold))
    return (*out, _renamed(_vector(loop, start, stop, rest), names))


def _renamed(loop: s.For, names: Names) -> s.For:
    var = names.var(loop.var.name)
    body = tuple(substituted(x, {loop.var.name: var}) for x in loop.body)
    return replace(loop, var=var, body=body)


def _length(loop: s.Parallel) -> e.Expr:
    """Elements a row goes through, as far as the host can tell."""
    bound = {x.name for x in loop.vars}
    bound |= {x.var.name for x in walk(loop.body) if isinstance(x, s.For | s.Let)}
    total: e.Expr = e.const(0)
    for statement in loop.body:
        total = build.binary("add", total, _trips(statement, bound))
    return total


def _trips(x: s.Stmt, bound: set[str]) -> e.Expr:
    if not isinstance(x, s.For):
        return e.const(1)
    count = build.binary("sub", x.stop, x.start)
    known = not mentions(count, bound) and not any(isinstance(node, e.Load) for node in walk(count))
    inner: e.Expr = e.const(0)
    for statement in x.body:
        inner = build.binary("add", inner, _trips(statement, bound))
    return build.binary("mul", count if known else e.const(64), inner)


def vectorised(body: Sequence[s.Stmt]) -> tuple[s.Stmt, ...]:
    """Loops whose iterations may run in any order become vectors: the innermost of a fold, and stores of each its own
    element."""
    out: list[s.Stmt] = []
    for item in parse(tuple(body)):
        if isinstance(item, Fold):
            out += [item.let, _innermost(item.loops[0], item)]
        elif isinstance(item, s.For):
            independent = item.kind == "serial" and simple(item.body) and own_elements(item)
            changed = (
                replace(item, kind="vector") if independent else replace(item, body=vectorised(item.body))
            )
            out.append(changed)
        elif isinstance(item, s.If):
            out.append(replace(item, then=vectorised(item.then), otherwise=vectorised(item.otherwise)))
        else:
            out.append(item)
    return tuple(out)


def _innermost(loop: s.For, fold: Fold) -> s.For:
    last = fold.loops[-1]

    def change(node: Any) -> Any:
        return replace(node, kind="vector") if isinstance(node, s.For) and node.var == last.var else node

    changed: s.For = transform(loop, change)
    return changed


def simple(body: Sequence[s.Stmt]) -> bool:
    """Only names, stores and conditions."""
    for item in body:
        match item:
            case s.Let(mutable=False) | s.Store():
                continue
            case s.If() if simple(item.then) and simple(item.otherwise):
                continue
        return False
    return True


def own_elements(loop: s.For) -> bool:
    """Each iteration stores elements that no other touches."""
    stores = [x for x in walk(loop.body) if isinstance(x, s.Store)]
    name = loop.var.name
    for store in stores:
        if not any(shifted(i, name) is not None for i in store.indices):
            return False
        for node in walk(loop.body):
            touches = isinstance(node, e.Load | s.Store) and node.buffer.name == store.buffer.name
            if touches and node.indices != store.indices:  # type: ignore[union-attr]
                return False
    return isinstance(loop.step, e.Const) and loop.step == e.Const(index, 1)
