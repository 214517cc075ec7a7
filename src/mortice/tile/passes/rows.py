"""Runs neighbouring statements row by row instead of one after the other, so that a row stays in the first cache and
its scalars in registers.

Gives "rows": nothing that a later pass needs; the meaning is the same. Statements join if each works row by row on
tiles of the same number of rows, and touches what any of them writes only in the row it is at.
"""

import math
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from mortice.tile.dtypes import index
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import rebuild, transform, walk, with_body
from mortice.tile.passes.pipeline import Pass

BANDS = (16, 8)  # rows
FIRST_CACHE = 32 << 10  # bytes that a band may take


def fuse_rows(function: s.Function) -> s.Function:
    names = _Names({node.name for node in walk(function.body) if isinstance(node, e.Var)})
    body = tuple(_inside(x, names) if isinstance(x, s.Launch) else x for x in function.body)
    return with_body(function, body)


@dataclass
class _Names:
    taken: set[str]

    def fresh(self, wish: str = "row") -> e.Var:
        name, count = wish, 0
        while name in self.taken:
            count += 1
            name = f"{wish}_{count}"
        self.taken.add(name)
        return e.Var(index, name)


@dataclass
class _Group:
    """rows: of every tile in it. written: buffers some member writes; touched: others that are read."""

    rows: int
    members: list[s.Stmt] = field(default_factory=list)
    written: set[str] = field(default_factory=set)
    loose: set[str] = field(default_factory=set)  # touched elsewhere than in the row
    touched: set[str] = field(default_factory=set)


def _inside(x: Any, names: _Names) -> Any:
    match x:
        case s.Launch() | s.For() | s.While():
            return replace(x, body=_block(x.body, names))
        case s.If():
            return replace(x, then=_block(x.then, names), otherwise=_block(x.otherwise, names))
    return x


def _block(block: s.Block, names: _Names) -> s.Block:
    out: list[s.Stmt] = []
    group: _Group | None = None

    def close() -> None:
        nonlocal group
        if group is not None:
            out.extend(_fused(group, names) if len(group.members) > 1 else group.members)
        group = None

    for statement in block:
        rows = _rows(statement)
        if rows is None:
            close()
            out.append(_inside(statement, names))
            continue
        if group is not None and not (group.rows == rows and _joins(group, statement)):
            close()
        if group is None:
            group = _Group(rows)
        _add(group, statement)
    close()
    return tuple(out)


def _rows(x: s.Stmt) -> int | None:
    """How many rows a statement works through one by one; None if it does not."""
    match x:
        case s.Parallel(extents=(e.Const(value=rows), *_)):
            if any(
                isinstance(node, s.Atomic | s.Alloc | s.Check | s.Print | s.Breakpoint)
                for node in walk(x.body)
            ):
                return None
            return int(rows)
        case s.Reduce() | s.Scan() if (
            len(x.source.kept) > 1 and x.axis > 0 and _tile(x.source) and _tile(x.target)
        ):
            return x.source.buffer.extents[0]
        case s.Copy() if _tile(x.source) and _tile(x.target):
            return x.source.buffer.extents[0]
        case s.Fill() if _tile(x.target):
            return x.target.buffer.extents[0]
    return None


def _tile(region: e.Region) -> bool:
    """A whole tile."""
    buffer = region.buffer
    whole = region.kept == tuple(range(len(buffer.shape))) and region.extents == buffer.shape
    return buffer.on_chip and bool(buffer.shape) and whole and all(o == e.const(0) for o in region.offsets)


def _accesses(x: s.Stmt) -> tuple[set[str], set[str], set[str]]:
    """Names of buffers written, touched, and touched elsewhere than in the row."""
    written: set[str] = set()
    touched: set[str] = set()
    loose: set[str] = set()
    if isinstance(x, s.Parallel):
        row = x.vars[0]
        for node in walk(x.body):
            if isinstance(node, e.Load | s.Store):
                touched.add(node.buffer.name)
                if isinstance(node, s.Store):
                    written.add(node.buffer.name)
                if not node.indices or node.indices[0] != row or not node.buffer.on_chip:
                    loose.add(node.buffer.name)
    else:
        for node in walk(x):
            if isinstance(node, e.Region):
                touched.add(node.buffer.name)
            if isinstance(node, e.Load):
                touched.add(node.buffer.name)
                loose.add(node.buffer.name)
        written.add(x.target.buffer.name)  # type: ignore[attr-defined]
    return written, touched, loose


def _joins(group: _Group, x: s.Stmt) -> bool:
    written, touched, loose = _accesses(x)
    all_written = group.written | written
    return not (all_written & (group.loose | loose) and (group.touched & written or group.written & touched))


def _add(group: _Group, x: s.Stmt) -> None:
    written, touched, loose = _accesses(x)
    group.members.append(x)
    group.written |= written
    group.touched |= touched
    group.loose |= loose


def _fused(group: _Group, names: _Names) -> list[s.Stmt]:
    band = _band(group)
    span = group.members[0].span
    if band == 1:
        row = names.fresh()
        body = tuple(x for member in group.members for x in _one_row(member, row))
        return [s.For(row, e.const(0), e.const(group.rows), e.const(1), body, span=span)]
    at = names.fresh("band")
    first = build.binary("mul", at, e.const(band))
    out: list[s.Stmt] = []
    for flat, members in groupby(group.members, _flat):
        if flat:
            out.extend(_entries(member, first, band) for member in members)
            continue
        row = names.fresh()
        body = tuple(x for member in members for x in _one_row(member, build.binary("add", first, row)))
        out.append(s.For(row, e.const(0), e.const(band), e.const(1), body, span=span))
    return [s.For(at, e.const(0), e.const(group.rows // band), e.const(1), tuple(out), span=span)]


def _band(group: _Group) -> int:
    """How many rows each member works through before the next one has its turn. Members with one number a row (running
    maxima and sums) then are vectors; the band's rows still lie in the first cache."""
    if not any(_flat(member) for member in group.members) or all(_flat(member) for member in group.members):
        return 1
    tiles = {
        node.buffer.name: node.buffer
        for member in group.members
        for node in walk(member)
        if isinstance(node, e.Load | e.Region | s.Store)
        and node.buffer.on_chip
        and len(node.buffer.shape) > 1
    }
    row_bytes = sum(math.prod(x.extents) * x.dtype.bytes // x.extents[0] for x in tiles.values())
    return next((n for n in BANDS if group.rows % n == 0 and n * row_bytes <= FIRST_CACHE), 1)


def _flat(x: s.Stmt) -> bool:
    """One number a row."""
    match x:
        case s.Parallel():
            return len(x.vars) == 1 and not any(isinstance(node, s.For | s.While) for node in walk(x.body))
        case s.Copy() | s.Fill():
            return len(x.target.buffer.shape) == 1
    return False


def _entries(x: s.Stmt, first: e.Expr, count: int) -> s.Stmt:
    """A flat statement on `count` rows from `first` on."""

    def part(region: e.Region) -> e.Region:
        return replace(region, offsets=(first,), extents=(e.const(count),))

    match x:
        case s.Parallel():
            at = build.binary("add", first, x.vars[0])
            body = tuple(transform(node, lambda n: at if n == x.vars[0] else n) for node in x.body)
            return replace(x, extents=(e.const(count),), body=body)
        case s.Copy():
            return replace(x, source=part(x.source), target=part(x.target))
        case s.Fill():
            return replace(x, target=part(x.target))
    raise TypeError(type(x).__name__)


def _one_row(x: s.Stmt, row: e.Expr) -> tuple[s.Stmt, ...]:
    match x:
        case s.Parallel():
            body = tuple(transform(node, lambda n: row if n == x.vars[0] else n) for node in x.body)
            if len(x.vars) == 1:
                return body
            return (replace(x, vars=x.vars[1:], extents=x.extents[1:], body=body),)
        case s.Reduce() | s.Scan():
            return (replace(x, source=_at(x.source, row), target=_at(x.target, row), axis=x.axis - 1),)
        case s.Copy():
            return (replace(x, source=_at(x.source, row), target=_at(x.target, row)),)
        case s.Fill():
            return (replace(x, target=_at(x.target, row)),)
    raise TypeError(type(x).__name__)


def _at(region: e.Region, row: e.Expr) -> e.Region:
    return replace(
        region,
        offsets=(row, *region.offsets[1:]),
        extents=(e.const(1), *region.extents[1:]),
        kept=region.kept[1:],
    )


def check(function: s.Function) -> None:
    """Nothing is lost: `rebuild` would have raised."""
    for node in walk(function.body):
        rebuild(node, lambda child: child)


ROWS = Pass("rows", fuse_rows, check, gives=frozenset({"rows"}))
