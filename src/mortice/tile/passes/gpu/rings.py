"""Rings: versions of shared tiles that a producer fills ahead of the consumers, with a full and an empty barrier each.

Tiles of one loop that are first used and last used by the same statement share a ring. The producer waits until a slot
is empty, announces the bytes, starts the copies; consumers wait until it is full and give it back after their last read.
Counters belong to the ring and the role, not to the loop, so parity follows executed transactions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mortice.tile.dtypes import index
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import buffers, walk
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu.context import Context, Counter, advance
from mortice.tile.passes.gpu.elements import store_element
from mortice.tile.passes.gpu.tiles import SharedTile

PRODUCERS = 128  # threads of the producing warpgroup
BOX = 256  # elements a box may have along one dimension


@dataclass
class Ring:
    """tiles: names; copies: that fill it, in order; loop: None for one that is filled once a block."""

    name: str
    tiles: tuple[str, ...]
    copies: tuple[s.Copy, ...]
    stages: int
    loop: s.For | None
    full: e.Buffer
    empty: e.Buffer
    by_threads: bool = False
    by_engine: bool = True
    bytes: int = 0

    @property
    def arrivals(self) -> int:
        return int(self.by_engine) + PRODUCERS * int(self.by_threads)


def is_load(x: s.Stmt) -> bool:
    return isinstance(x, s.Copy) and x.source.buffer.scope == "global" and x.target.buffer.scope == "shared"


def find_rings(body: s.Block, loop: s.For | None = None) -> list[Ring]:
    """Of the block and the loops in it, in the order of their copies."""
    rings: list[Ring] = []
    users: dict[str, tuple[int, int]] = {}
    for number, statement in enumerate(body):
        if not is_load(statement):
            for buffer in buffers(statement):
                if buffer.scope == "shared":
                    first, _ = users.get(buffer.name, (number, number))
                    users[buffer.name] = (first, number)
    groups: dict[tuple[int, int], list[s.Copy]] = {}
    for statement in body:
        if is_load(statement):
            assert isinstance(statement, s.Copy)
            name = statement.target.buffer.name
            groups.setdefault(users.get(name, (-1, -1)), []).append(statement)
        elif isinstance(statement, s.For):
            rings += find_rings(statement.body, statement)
        elif isinstance(statement, s.If):
            rings += find_rings(statement.then, loop) + find_rings(statement.otherwise, loop)
    own = []
    for copies in groups.values():
        tiles = tuple(dict.fromkeys(copy.target.buffer.name for copy in copies))
        name = f"ring_{tiles[0]}"
        stages = max(1, loop.stages) if loop is not None and loop.kind == "pipelined" else 1
        full, empty = (
            e.Buffer(f"{kind}_{tiles[0]}", index, (a.const(stages),), "barrier") for kind in ("full", "empty")
        )
        own.append(Ring(name, tiles, tuple(copies), stages, loop, full, empty))
    return own + rings


def with_stages(ring: Ring, stages: int, panels: int = 1) -> Ring:
    """panels: of each stage that have barriers of their own."""
    shape = (a.const(stages * panels),)
    full, empty = replace(ring.full, shape=shape), replace(ring.empty, shape=shape)
    return replace(ring, stages=stages, full=full, empty=empty)


# How a copy may go


def why_no_tma(cx: Context, copy: s.Copy, tile: SharedTile) -> str | None:  # noqa: C901 - a list of rules
    """The first rule of the copy engine that this copy breaks."""
    region, tensor = copy.source, copy.source.buffer
    last = len(tensor.shape) - 1
    if copy.prefer in ("cp_async", "plain"):
        return f"prefer={copy.prefer!r} asks for that"
    if tensor.align != 16 and tensor.name not in cx.aligned:
        return f"the base or a stride of {tensor.name} is no multiple of 16 bytes"
    if tensor.strides is not None and tensor.strides[-1] != a.const(1):
        return f"the last stride of {tensor.name} is not 1"
    if tensor.dtype != tile.dtype:
        return f"{tensor.name} is {tensor.dtype}, the tile {tile.dtype}"
    if len(tensor.shape) > 5:
        return f"{tensor.name} has more than 5 dimensions"
    if _one_row(copy):
        return _why_no_row(copy, tile)
    if len(region.kept) != 2 or region.kept[-1] != last:
        return f"the box of {tensor.name} has not two dimensions that end in the last"
    if not tile.width:
        return f"rows of the tile {tile.name} are no multiple of 32 bytes"
    target = copy.target
    columns, rows = target.extents[-1], target.extents[0]
    if not all(isinstance(x, e.Const) for x in (columns, rows, target.offsets[-1])):
        return "the box has an extent known only at run time"
    assert isinstance(columns, e.Const)
    assert isinstance(rows, e.Const)
    assert isinstance(target.offsets[-1], e.Const)
    if int(columns.value) % tile.panel_columns or int(target.offsets[-1].value) % tile.panel_columns:
        return f"the box is no whole panels of {tile.name}"
    if int(rows.value) % 8:
        return "the box has no multiple of 8 rows"
    if copy.pad != e.Const(copy.pad.dtype, 0.0):
        return "it pads with something else than 0"
    return None


def _why_no_row(copy: s.Copy, tile: SharedTile) -> str | None:
    whole = copy.target.extents[0] == a.const(tile.columns) and copy.target.offsets[0] == a.const(0)
    if not whole or tile.columns > BOX or tile.columns * tile.dtype.bytes % 16:
        return f"the box is not the whole tile {tile.name}, of at most {BOX} elements by 16 bytes"
    if copy.pad != e.Const(copy.pad.dtype, 0.0):
        return "it pads with something else than 0"
    return None


def _one_row(copy: s.Copy) -> bool:
    """Is it a row to a tile of one dimension?"""
    last = len(copy.source.buffer.shape) - 1
    return copy.source.kept == (last,) and len(copy.target.buffer.shape) == 1


def engine_loads(
    cx: Context, copy: s.Copy, tile: SharedTile, full: e.Region, panel_only: int | None = None
) -> None:
    """One bulk tensor copy for each panel, or for that one only, and each 256 rows."""
    tensor, region, target = copy.source.buffer, copy.source, copy.target
    if _one_row(copy):
        tensor_map = tensor_map_of(cx, tensor, region.kept, 1, tile.columns, 0)
        cx.op(
            "tma_load", cx.address(tile.origin), a.box(tensor_map.buffer, 0), full, *reversed(region.offsets),
            span=copy.span, multicast=0, hint="",
        )  # fmt: skip
        return
    rows = int(target.extents[0].value)  # type: ignore[attr-defined]
    columns = int(target.extents[-1].value)  # type: ignore[attr-defined]
    high = min(rows, BOX)
    tensor_map = tensor_map_of(cx, tensor, region.kept, high, tile.panel_columns, tile.width)
    for panel in range(columns // tile.panel_columns) if panel_only is None else (panel_only,):
        for top in range(0, rows, high):
            where = [
                a.add(
                    offset,
                    top
                    if axis == region.kept[0]
                    else panel * tile.panel_columns
                    if axis == region.kept[1]
                    else 0,
                )
                for axis, offset in enumerate(region.offsets)
            ]
            row = a.add(target.offsets[0], top)
            first = a.add(target.offsets[-1], panel * tile.panel_columns)
            assert isinstance(first, e.Const)
            place = a.add(
                a.mul(row, tile.width), int(first.value) // tile.panel_columns * tile.panel_bytes, tile.origin
            )
            cx.op(
                "tma_load", cx.address(place), a.box(tensor_map.buffer, 0), full, *reversed(where),
                span=copy.span, multicast=0, hint="",
            )  # fmt: skip


def tensor_map_of(
    cx: Context, tensor: e.Buffer, kept: tuple[int, ...], rows: int, columns: int, swizzle: int
) -> s.TensorMap:
    rank = len(tensor.shape)
    box = [1] * rank
    box[kept[0]] = rows
    box[kept[-1]] = columns
    dims = tuple(reversed(range(rank)))
    shape = tuple(box[dim] for dim in dims)
    key = f"{tensor.name} {shape} {swizzle}"
    if key not in cx.maps:
        name = cx.fresh(f"{tensor.name}_map")
        cx.maps[key] = s.TensorMap(e.Buffer(name, index, (), "map"), tensor, dims, shape, swizzle)
    return cx.maps[key]


def thread_loads(cx: Context, copy: s.Copy, tile: SharedTile, threads: int, thread: e.Expr) -> None:
    """Each thread some elements: no rule to keep, and slow."""
    from_, to = copy.source, copy.target
    shape = [x for i, x in enumerate(to.extents) if i in to.kept]
    extents = [int(x.value) for x in shape if isinstance(x, e.Const)]
    if len(extents) != len(shape):
        cx.refuse(copy, "copy", "its extent is known only at run time", "copy constant boxes")
    total = 1
    for extent in extents:
        total *= extent
    step = cx.var("n")
    with cx.block() as body:
        left: e.Expr = step
        indices: list[e.Expr] = []
        for extent in reversed(extents):
            indices.insert(0, a.digit(left, 1, extent) if extent & (extent - 1) == 0 else a.mod(left, extent))
            left = build.binary("floordiv", left, a.const(extent))
        source, target, dim_from, dim_to = [], [], 0, 0
        for axis, offset in enumerate(from_.offsets):
            moved = axis in from_.kept
            source.append(a.add(offset, indices[dim_from]) if moved else offset)
            dim_from += moved
        for axis, offset in enumerate(to.offsets):
            moved = axis in to.kept
            target.append(a.add(offset, indices[dim_to]) if moved else offset)
            dim_to += moved
        value: e.Expr = build.load(from_.buffer, tuple(source))
        if copy.pad != e.Const(copy.pad.dtype, 0.0):
            ends = zip(source, from_.buffer.shape, strict=True)
            inside = [test for i, x in ends for test in (build.binary("ge", i, a.const(0)), a.less(i, x))]
            value = build.select(a.every(*inside), value, copy.pad)
        store_element(cx, tile, tuple(target), value)
    cx.emit(s.For(step, thread, a.const(total), a.const(threads), tuple(body), "serial", span=copy.span))


# The producer


class Producer:
    """The role that fills rings. one: a single thread does all of it; otherwise its whole warpgroup. orders: of the panels
    of rings that go panel by panel."""

    def __init__(
        self,
        cx: Context,
        rings: list[Ring],
        one: bool,
        thread: e.Expr,
        orders: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.cx, self.rings, self.one, self.thread, self.orders = cx, rings, one, thread, orders
        self.at = {
            ring.name: Counter(
                cx.let(f"{ring.name}_in", a.const(0), mutable=True),
                cx.let(f"{ring.name}_turn", a.const(1), mutable=True),
            )
            for ring in rings
        }

    def body(self, block: s.Block, loop: s.For | None = None) -> None:
        """What of the block concerns copies: they, the loops and tests around them, the scalars they need."""
        cx = self.cx
        for statement in block:
            if is_load(statement):
                ring = next(r for r in self.rings if any(copy is statement for copy in r.copies))
                self._fill(ring, statement)
                continue
            match statement:
                case s.Let() | s.Assign() if not _touches_chip(statement):
                    cx.emit(statement)
                case s.For() | s.While() | s.If() if _scalars_only(statement):
                    cx.emit(statement)
                case s.For() if _has_loads(statement.body):
                    with cx.block() as body:
                        self.body(statement.body, statement)
                    cx.emit(replace(statement, kind="serial", body=tuple(body)))
                case s.If() if _has_loads((statement,)):
                    with cx.block() as then:
                        self.body(statement.then, loop)
                    with cx.block() as otherwise:
                        self.body(statement.otherwise, loop)
                    cx.emit(replace(statement, then=tuple(then), otherwise=tuple(otherwise)))

    def _fill(self, ring: Ring, copy: s.Stmt) -> None:
        assert isinstance(copy, s.Copy)
        cx, at = self.cx, self.at[ring.name]
        if ring.name in self.orders:
            if copy is ring.copies[-1]:
                self._fill_by_panel(ring, self.orders[ring.name])
            return
        full, empty = a.box(ring.full, at.slot), a.box(ring.empty, at.slot)
        if copy is ring.copies[0]:
            cx.op("barrier_wait", empty, at.parity)
            if ring.by_engine:
                with self._single():
                    cx.op("barrier_expect", full, a.const(ring.bytes))
        tile = replace(cx.tiles[copy.target.buffer.name], slot=at.slot if ring.stages > 1 else None)
        if why_no_tma(cx, copy, tile) is None:
            with self._single():
                engine_loads(cx, copy, tile, full)
        else:
            thread_loads(cx, copy, tile, PRODUCERS, self.thread)
        if copy is ring.copies[-1]:
            if ring.by_threads:
                cx.op("fence_async")
                cx.op("barrier_arrive", full)
            advance(cx, at, ring.stages)

    def _fill_by_panel(self, ring: Ring, order: tuple[int, ...]) -> None:
        """All copies of an iteration: what they need is read before the first wait."""
        cx, at, tile = self.cx, self.at[ring.name], self.cx.tiles[ring.tiles[0]]
        copies = []
        for copy in ring.copies:
            where = tuple(x if isinstance(x, e.Const) else cx.let("from", x) for x in copy.source.offsets)
            copies.append(replace(copy, source=replace(copy.source, offsets=where)))
        for panel in order:
            full = a.box(ring.full, panel)
            cx.op("barrier_wait", a.box(ring.empty, panel), at.parity)
            with self._single():
                cx.op("barrier_expect", full, a.const(ring.bytes // len(order)))
                for copy in copies:
                    engine_loads(cx, copy, tile, full, panel)
        advance(cx, at, 1)

    def _single(self):  # type: ignore[no-untyped-def]
        return self.cx.when(e.TRUE if self.one else a.equal(self.thread, 0))


def _has_loads(block: s.Block) -> bool:
    return any(is_load(x) for x in walk(block) if isinstance(x, s.Stmt))


def _scalars_only(x: s.Stmt) -> bool:
    kinds = (s.Let, s.Assign, s.For, s.While, s.If)
    return not _touches_chip(x) and all(isinstance(n, kinds) for n in walk(x) if isinstance(n, s.Stmt))


def _touches_chip(x: s.Stmt) -> bool:
    return any(isinstance(node, e.Load) and node.buffer.on_chip for node in walk(x))
