"""What is no matrix product, on a machine whose threads share out a tile: rows go through a tile of a few rows in pieces
and are reduced; everything else is a tile of independent elements."""

from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.passes.tiling.loops import own_elements, simple
from mortice.tile.passes.tiling.machine import Machine
from mortice.tile.passes.tiling.patterns import (
    FOLDS,
    Fold,
    Names,
    both,
    inlined,
    mentions,
    parse,
    substituted,
)

ROWS, PIECE = 4, 512


def launches(loop: s.Parallel, machine: Machine, names: Names) -> list[s.Stmt]:
    items = inlined(parse(loop.body))
    return [_rows(loop, items, names) if _by_rows(loop, items) else _flat(loop, machine, names)]


def _by_rows(loop: s.Parallel, items: list[s.Stmt | Fold]) -> bool:
    inner = {x.name for x in loop.vars}
    for item in items:
        match item:
            case Fold(loops=(one,)) if item.op in ("add", "max", "min") and item.var.dtype.is_float:
                if mentions(one.start, inner) or mentions(one.stop, inner):
                    return False
            case s.For() if not (simple(item.body) and own_elements(item) and not mentions(item.stop, inner)):
                return False
            case s.For() | s.Store():
                continue
            case _:
                return False
    return any(isinstance(x, Fold) for x in items)


def _grid(
    loop: s.Parallel, chunk: int, names: Names
) -> tuple[tuple[e.Var, ...], tuple[e.Expr, ...], e.Expr, list[s.Stmt]]:
    """Launch variables, their extents, where the chunk of the last variable begins, and names for the other ones."""
    last = names.var(f"{loop.vars[-1].name}_block")
    grid: list[e.Expr] = [build.ceildiv(loop.extents[-1], e.const(chunk))]
    outer = list(zip(loop.vars[:-1], loop.extents[:-1], strict=True))[::-1]
    lets: list[s.Stmt] = []
    if len(outer) <= 2:
        variables = (last, *(var for var, _ in outer))
        grid += [extent for _, extent in outer]
    else:
        flat = names.var("outer")
        variables, total, rest = (last, flat), e.const(1), flat
        for position, (var, extent) in enumerate(outer):
            at: e.Expr = rest
            if position + 1 < len(outer):
                at, rest = build.binary("mod", rest, extent), build.binary("floordiv", rest, extent)  # type: ignore[assignment]
            lets.append(s.Let(var, at, span=loop.span))
            total = build.binary("mul", total, extent)  # type: ignore[assignment]
        grid.append(total)
    return variables, tuple(grid), build.binary("mul", last, e.const(chunk)), lets


def _flat(loop: s.Parallel, machine: Machine, names: Names) -> s.Launch:
    variables, grid, start, lets = _grid(loop, machine.width, names)
    i = names.var(loop.vars[-1].name)
    at = build.binary("add", start, i)
    body = tuple(substituted(x, {loop.vars[-1].name: at}) for x in loop.body)
    test = build.binary("lt", at, loop.extents[-1])
    tile = s.Parallel((i,), (e.const(machine.width),), (s.If(test, body, span=loop.span),), span=loop.span)
    return s.Launch(variables, grid, (*lets, tile), machine.width, span=loop.span)


def _rows(loop: s.Parallel, items: list[s.Stmt | Fold], names: Names) -> s.Launch:
    variables, grid, start, lets = _grid(loop, ROWS, names)
    body: list[s.Stmt] = list(lets)
    totals: dict[str, e.Buffer] = {}
    for item in items:
        if isinstance(item, Fold):
            total = e.Buffer(
                names.name(item.var.name), item.var.dtype, (e.const(ROWS),), "fragment", span=item.let.span
            )
            body += [s.Alloc(total, span=total.span), s.Fill(_whole(total), item.let.value, span=total.span)]
            body.append(_fold(loop, item, total, totals, start, names))
            totals[item.var.name] = total
        elif isinstance(item, s.For):
            body.append(_stores(loop, item, totals, start, names))
        else:
            i = names.var("i")
            places, inside = _places(loop, i, totals, start)
            store = s.If(inside, (substituted(item, places),), span=item.span)
            body.append(s.Parallel((i,), (e.const(ROWS),), (store,), span=item.span))
    return s.Launch(variables, grid, tuple(body), 128, span=loop.span)


def _places(
    loop: s.Parallel, i: e.Var, totals: dict[str, e.Buffer], start: e.Expr
) -> tuple[dict[str, e.Expr], e.Expr]:
    row = build.binary("add", start, i)
    known: dict[str, e.Expr] = {name: build.load(tile, (i,)) for name, tile in totals.items()}
    return {loop.vars[-1].name: row, **known}, build.binary("lt", row, loop.extents[-1])


def _pieces(loop: s.For, names: Names) -> tuple[e.Var, e.Var, e.Expr, e.Expr]:
    """Variables of the piece and within it, the place they say, how many pieces."""
    piece, j = names.var(f"{loop.var.name}_block"), names.var("j")
    first = build.binary("add", loop.start, build.binary("mul", piece, e.const(PIECE)))
    count = build.ceildiv(build.binary("sub", loop.stop, loop.start), e.const(PIECE))
    return piece, j, build.binary("add", first, j), count


def _fold(
    loop: s.Parallel, x: Fold, total: e.Buffer, totals: dict[str, e.Buffer], start: e.Expr, names: Names
) -> s.For:
    (k,), span = x.loops, x.let.span
    piece, j, at, count = _pieces(k, names)
    i = names.var("i")
    places, inside = _places(loop, i, totals, start)
    places[k.var.name] = at
    tests = [inside, build.binary("lt", at, k.stop), *(substituted(test, places) for test in x.conditions)]
    value = build.select(both(tests), substituted(x.value, places), x.let.value, span)
    shape = (e.const(ROWS), e.const(PIECE))
    tile = e.Buffer(names.name("values"), x.var.dtype, shape, "fragment", span=span)
    fill = s.Parallel((i, j), shape, (s.Store(tile, (i, j), value, span=span),), span=span)
    reduce = s.Reduce(FOLDS[x.op], _whole(tile), _whole(total), 1, False, span=span)
    return s.For(piece, e.const(0), count, e.const(1), (s.Alloc(tile, span=span), fill, reduce), span=span)


def _stores(loop: s.Parallel, x: s.For, totals: dict[str, e.Buffer], start: e.Expr, names: Names) -> s.For:
    piece, j, at, count = _pieces(x, names)
    i = names.var("i")
    places, inside = _places(loop, i, totals, start)
    places[x.var.name] = at
    test = build.binary("and", inside, build.binary("lt", at, x.stop))
    body = (s.If(test, tuple(substituted(y, places) for y in x.body), span=x.span),)
    tile = s.Parallel((i, j), (e.const(ROWS), e.const(PIECE)), body, span=x.span)
    return s.For(piece, e.const(0), count, e.const(1), (tile,), span=x.span)


def _whole(buffer: e.Buffer) -> e.Region:
    zeros = tuple(e.const(0) for _ in buffer.shape)
    return e.Region(buffer, zeros, buffer.shape, tuple(range(len(zeros))), span=buffer.span)
