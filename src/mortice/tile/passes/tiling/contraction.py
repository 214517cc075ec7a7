"""Sums of products that are matrix products: `sum(A[m, k] * B[k, n])`, with batches, sums over several variables
(a convolution), masks, operands that are computed (dequantised weights), several sums a result and anything done with them.

One form for each size of result is written down; a launch of the others is empty at run time.
"""

from dataclasses import dataclass

from mortice.tile.dtypes import DType, f32
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.passes.tiling.machine import Blocking, Machine
from mortice.tile.passes.tiling.patterns import (
    Fold,
    Names,
    both,
    factors,
    inlined,
    mentions,
    parse,
    product,
    shifted,
    substituted,
)


@dataclass(frozen=True, slots=True)
class Operand:
    """rows, k: the loop variables its two dimensions run over. value: what an element is. conditions: else it is 0."""

    rows: e.Var
    k: s.For
    value: e.Expr
    conditions: tuple[e.Expr, ...]

    def box(self) -> tuple[int, int] | None:
        """The axes of rows and k, if the operand is a box of a tensor."""
        load = self.value
        if not isinstance(load, e.Load) or load.buffer.on_chip or self.conditions:
            return None
        axes: list[int] = []
        for name in (self.rows.name, self.k.var.name):
            found = [i for i, x in enumerate(load.indices) if mentions(x, {name})]
            if len(found) != 1 or shifted(load.indices[found[0]], name) is None:
                return None
            axes.append(found[0])
        a, b = axes
        whole = self.k.start == e.const(0) and load.indices[b] == self.k.var
        return (a, b) if a != b and whole and load.buffer.shape[b] == self.k.stop else None

    @property
    def dtype(self) -> DType | None:
        """Of the tensor, if it is an element of one."""
        return self.value.buffer.dtype if isinstance(self.value, e.Load) else None


@dataclass(frozen=True, slots=True)
class Term:
    """One sum: c [m, n] += a [m, k] b [k, n], inside `outer` loops."""

    fold: Fold
    a: Operand
    b: Operand
    outer: tuple[s.For, ...]

    def operand_type(self, machine: Machine) -> DType | None:
        types = {self.a.dtype, self.b.dtype}
        direct = len(types) == 1 and self.a.box() is not None and self.b.box() is not None
        one = next(iter(types))
        if direct and one is not None and one.name in machine.matrix_types:
            return one
        return f32 if "f32" in machine.matrix_types else None


@dataclass(frozen=True, slots=True)
class Contraction:
    m: e.Var
    n: e.Var
    extents: tuple[e.Expr, e.Expr]
    batch: tuple[tuple[e.Var, e.Expr], ...]
    terms: tuple[Term, ...]
    epilogue: tuple[s.Stmt, ...]
    loop: s.Parallel


def contraction(loop: s.Parallel, machine: Machine) -> Contraction | None:
    items = inlined(parse(loop.body))
    folds = [x for x in items if isinstance(x, Fold)]
    epilogue = tuple(x for x in items if not isinstance(x, Fold))
    if not folds or len(loop.vars) < 2 or not all(isinstance(x, s.Store) for x in epilogue):
        return None
    first = next(i for i, x in enumerate(items) if not isinstance(x, Fold))
    if any(isinstance(x, Fold) for x in items[first:]) or any(
        x.op != "add" or x.var.dtype != f32 for x in folds
    ):
        return None
    written = {x.buffer.name for x in epilogue if isinstance(x, s.Store)}
    if any(isinstance(x, e.Load) and x.buffer.name in written for fold in folds for x in walk(fold.value)):
        return None
    variables = dict(zip((x.name for x in loop.vars), loop.extents, strict=True))
    for m, n in _pairs(loop, epilogue):
        terms = [_term(fold, m, n) for fold in folds]
        found = tuple(x for x in terms if x is not None)
        if len(found) == len(folds) and all(x.operand_type(machine) is not None for x in found):
            batch = tuple((x, variables[x.name]) for x in loop.vars if x not in (m, n))
            return Contraction(m, n, (variables[m.name], variables[n.name]), batch, found, epilogue, loop)
    return None


def _pairs(loop: s.Parallel, epilogue: tuple[s.Stmt, ...]) -> list[tuple[e.Var, e.Var]]:
    """Rows and columns of the result, likeliest first: columns are what the last index of the result counts."""
    last = [x.indices[-1] for x in epilogue if isinstance(x, s.Store) and x.indices]
    order = sorted(loop.vars, key=lambda x: (x in last, loop.vars.index(x)), reverse=True)
    rest = {n: [m for m in reversed(loop.vars) if m != n] for n in order}
    return [(m, n) for n in order for m in rest[n]]


def _term(fold: Fold, m: e.Var, n: e.Var) -> Term | None:
    k = fold.loops[-1]
    inner = {m.name, n.name, *(x.var.name for x in fold.loops)}
    if any(mentions(x.start, inner) or mentions(x.stop, inner) for x in fold.loops):
        return None
    sides: dict[str, list[e.Expr]] = {"a": [], "b": []}
    for part in factors(fold.value):
        if mentions(part, {m.name}) and mentions(part, {n.name}):
            return None
        sides["b" if mentions(part, {n.name}) else "a"].append(part)
    masks: dict[str, list[e.Expr]] = {"a": [], "b": []}
    for test in fold.conditions:
        if mentions(test, {m.name}) and mentions(test, {n.name}):
            return None
        masks["b" if mentions(test, {n.name}) else "a"].append(test)
    for side, row in (("a", m), ("b", n)):
        if not sides[side] or not mentions(product(sides[side]), {row.name}):
            return None
        if not mentions(product(sides[side]), {k.var.name}):
            return None
    a = Operand(m, k, product(sides["a"]), tuple(masks["a"]))
    b = Operand(n, k, product(sides["b"]), tuple(masks["b"]))
    return Term(fold, a, b, fold.loops[:-1])


def launch(x: Contraction, blocking: Blocking, machine: Machine, names: Names, when: e.Expr) -> s.Launch:
    """when: a condition of sizes under which this form runs."""
    span = x.loop.span
    bm, bn = names.var(f"{x.m.name}_block"), names.var(f"{x.n.name}_block")
    height, width = _fitted(blocking.m, x.extents[0]), _fitted(blocking.n, x.extents[1])
    grid = [build.ceildiv(x.extents[0], e.const(height)), build.ceildiv(x.extents[1], e.const(width))]
    grid[0] = build.select(when, grid[0], e.const(0))
    m0, n0 = build.binary("mul", bm, e.const(height)), build.binary("mul", bn, e.const(width))
    body: list[s.Stmt] = []
    variables = [bm, bn]
    batch: e.Expr = e.const(1)
    for _, extent in x.batch:
        batch = build.binary("mul", batch, extent)
    if len(x.batch) == 1:
        variables.append(x.batch[0][0])
        grid.append(batch)
    elif x.batch:
        which = names.var("batch")
        variables.append(which)
        grid.append(batch)
        body += _unravelled(which, x.batch)
    sums: dict[str, e.Buffer] = {}
    for term in x.terms:
        c = e.Buffer(
            names.name("c"), f32, (e.const(height), e.const(width)), "fragment", span=term.fold.let.span
        )
        sums[term.fold.var.name] = c
        body += [s.Alloc(c, span=c.span), s.Fill(_whole(c), e.Const(f32, 0.0), span=c.span)]
        body += _product(term, c, (m0, n0), blocking, machine, names)
    body += _epilogue(x, sums, (m0, n0), (height, width), names)
    return s.Launch(tuple(variables), tuple(grid), tuple(body), None, 8, span=span)


def _fitted(block: int, extent: e.Expr) -> int:
    """No wider than a known extent needs."""
    return min(block, -(-int(extent.value) // 32) * 32) if isinstance(extent, e.Const) else block


def _unravelled(which: e.Var, batch: tuple[tuple[e.Var, e.Expr], ...]) -> list[s.Stmt]:
    lets: list[s.Stmt] = []
    rest: e.Expr = which
    for var, extent in reversed(batch[1:]):
        lets.append(s.Let(var, build.binary("mod", rest, extent)))
        rest = build.binary("floordiv", rest, extent)
    return [*lets, s.Let(batch[0][0], rest)]


def _product(
    term: Term, c: e.Buffer, at: tuple[e.Expr, e.Expr], blocking: Blocking, machine: Machine, names: Names
) -> list[s.Stmt]:
    """The loop over k, inside the outer ones."""
    span, k = term.fold.let.span, term.fold.loops[-1]
    dtype = term.operand_type(machine)
    assert dtype is not None
    length = build.binary("sub", k.stop, k.start)
    depth = _fitted(blocking.k, length)
    step = names.var(f"{k.var.name}_block")
    k0 = build.binary("add", k.start, build.binary("mul", step, e.const(depth)))
    allocs: list[s.Stmt] = []
    inner: list[s.Stmt] = []
    regions: list[tuple[e.Region, bool]] = []
    for letter, operand, offset, extent in (
        ("a", term.a, at[0], c.extents[0]),
        ("b", term.b, at[1], c.extents[1]),
    ):
        tile, fill, turned = _operand(operand, letter, dtype, (offset, k0), (extent, depth), names)
        allocs.append(s.Alloc(tile, span=span))
        inner.append(fill)
        regions.append((_whole(tile), turned))
    (a, a_turned), (b, b_turned) = regions
    inner.append(s.Gemm(a, b, _whole(c), a_turned, not b_turned, span=span))
    count = build.ceildiv(length, e.const(depth))
    loops: s.Stmt = s.For(
        step, e.const(0), count, e.const(1), tuple(inner), "pipelined", blocking.stages, span=span
    )
    for outer in reversed(term.outer):
        loops = s.For(outer.var, outer.start, outer.stop, outer.step, (loops,), span=span)
    return [*allocs, loops]


def _operand(
    x: Operand, letter: str, dtype: DType, at: tuple[e.Expr, e.Expr], extents: tuple[int, int], names: Names
) -> tuple[e.Buffer, s.Stmt, bool]:
    """The tile, what fills it, and whether it lies [k, rows]."""
    span = x.value.span
    axes = x.box()
    if axes is not None:
        assert isinstance(x.value, e.Load)
        source, turned = x.value.buffer, axes[0] > axes[1]
        offsets, widths = list(x.value.indices), [e.const(1)] * len(source.shape)
        for axis, name, start, extent in zip(axes, (x.rows.name, x.k.var.name), at, extents, strict=True):
            rest = shifted(x.value.indices[axis], name)
            assert rest is not None
            offsets[axis] = build.binary("add", start, rest)
            widths[axis] = e.const(extent)
        shape = extents[::-1] if turned else extents
        tile = e.Buffer(names.name(letter), dtype, tuple(map(e.const, shape)), "shared", span=span)
        box = e.Region(source, tuple(offsets), tuple(widths), tuple(sorted(axes)), span=span)
        return tile, s.Copy(box, _whole(tile), e.Const(f32, 0.0), span=span), turned
    tile = e.Buffer(names.name(letter), dtype, tuple(map(e.const, extents)), "shared", span=span)
    i, j = names.var("i"), names.var("j")
    k = build.binary("add", at[1], j)
    places = {x.rows.name: build.binary("add", at[0], i), x.k.var.name: k}
    tests = [build.binary("lt", k, x.k.stop), *(substituted(test, places) for test in x.conditions)]
    value = build.coerced(substituted(x.value, places), f32)
    value = build.select(both(tests), value, e.Const(f32, 0.0), span)
    return tile, s.Parallel((i, j), tile.shape, (s.Store(tile, (i, j), value, span=span),), span=span), False


def _epilogue(
    x: Contraction,
    sums: dict[str, e.Buffer],
    at: tuple[e.Expr, e.Expr],
    extents: tuple[int, int],
    names: Names,
) -> list[s.Stmt]:
    i, j = names.var("i"), names.var("j")
    places: dict[str, e.Expr] = {
        x.m.name: build.binary("add", at[0], i),
        x.n.name: build.binary("add", at[1], j),
        **{name: build.load(c, (i, j)) for name, c in sums.items()},
    }
    shape = (e.const(extents[0]), e.const(extents[1]))
    first = next(iter(sums.values()))
    (store, *others) = x.epilogue
    assert isinstance(store, s.Store)
    region = None if others else _result(x, store, at, extents)
    if region is not None and store.value.dtype == f32:
        out: list[s.Stmt] = []
        if store.value != x.terms[0].fold.var:
            done = s.Store(first, (i, j), substituted(store.value, places), span=store.span)
            out.append(s.Parallel((i, j), shape, (done,), span=store.span))
        return [*out, s.Copy(_whole(first), region, e.Const(f32, 0.0), span=store.span)]
    inside = [build.binary("lt", places[v.name], n) for v, n in zip((x.m, x.n), x.extents, strict=True)]
    body = tuple(substituted(item, places) for item in x.epilogue)
    return [s.Parallel((i, j), shape, (s.If(both(inside), body, span=store.span),), span=store.span)]


def _result(
    x: Contraction, store: s.Store, at: tuple[e.Expr, e.Expr], extents: tuple[int, int]
) -> e.Region | None:
    """The box of the result that a block writes, if what lies outside it is outside the tensor."""
    offsets, widths, axes = list(store.indices), [e.const(1)] * len(store.indices), []
    for var, extent, start, width in zip((x.m, x.n), x.extents, at, extents, strict=True):
        found = [axis for axis, index in enumerate(store.indices) if mentions(index, {var.name})]
        if len(found) != 1 or store.indices[found[0]] != var or store.buffer.shape[found[0]] != extent:
            return None
        offsets[found[0]], widths[found[0]] = start, e.const(width)
        axes.append(found[0])
    if axes[0] > axes[1]:
        return None
    return e.Region(store.buffer, tuple(offsets), tuple(widths), tuple(axes), span=store.span)


def _whole(buffer: e.Buffer) -> e.Region:
    zeros = tuple(e.const(0) for _ in buffer.shape)
    return e.Region(buffer, zeros, buffer.shape, tuple(range(len(zeros))), span=buffer.span)
