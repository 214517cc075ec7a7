"""Copies to shared tiles by all threads of a block: asynchronously where they may (cp.async), and ahead of their use in
pipelined loops.

A loop of S stages has S versions of its tiles. Iteration k waits for its own copies, meets the other threads (so that all
see them, and nobody still reads version k - 1), starts the copies of iteration k + S - 1 into that version, and computes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import buffers, transform, walk
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu import elements
from mortice.tile.passes.gpu.context import Context
from mortice.tile.passes.gpu.rings import is_load, thread_loads
from mortice.tile.passes.gpu.tensors import multiple
from mortice.tile.passes.gpu.tiles import SharedTile

UNROLLED = 16  # copies of a thread that are written out


@dataclass(frozen=True, slots=True)
class Ahead:
    """The copies of a loop that run ahead, and the tiles they fill, of which there are `stages` versions."""

    loop: s.For
    copies: tuple[s.Copy, ...]
    tiles: tuple[str, ...]
    stages: int


def why_not_ahead(launch: s.Launch, loop: s.For, tile: str, written: set[str]) -> str | None:
    """What keeps the copies to a tile from running ahead in a loop."""
    copies = [x for x in loop.body if isinstance(x, s.Copy) and is_load(x) and x.target.buffer.name == tile]
    mentions = [
        x
        for x in walk(launch.body)
        if isinstance(x, s.Stmt) and not isinstance(x, s.Alloc) and _direct(x, tile)
    ]
    here = [x for x in walk(loop.body) if isinstance(x, s.Stmt) and _direct(x, tile)]
    if len(mentions) != len(here):
        return f"{tile} is used outside the loop"
    if any(_writes(x, tile) and not any(x is copy for copy in copies) for x in here):
        return f"{tile} is also written otherwise"
    first = min(i for i, x in enumerate(loop.body) if any(x is copy for copy in copies))
    if any(buffer.name == tile for x in loop.body[:first] for buffer in buffers(x)):
        return f"{tile} is read before it is filled"
    for copy in copies:
        if copy.source.buffer.name in written:
            return f"{copy.source.buffer.name} is written by this kernel"
        if _scalars(loop, copy) is None:
            return "where it reads from changes within the loop"
    return None


def loops_ahead(launch: s.Launch, written: set[str], note: Callable[[s.For, str], None]) -> list[Ahead]:
    """Of all pipelined loops; note: told of each tile that stays behind, and why."""
    out = []
    for loop in walk(launch.body):
        if not isinstance(loop, s.For) or loop.kind != "pipelined" or loop.stages < 2:
            continue
        loads = [x for x in loop.body if isinstance(x, s.Copy) and is_load(x)]
        tiles = []
        for tile in dict.fromkeys(x.target.buffer.name for x in loads):
            reason = why_not_ahead(launch, loop, tile, written)
            if reason is None:
                tiles.append(tile)
            else:
                note(loop, f"{tile} is waited for at once: {reason}")
        copies = tuple(x for x in loads if x.target.buffer.name in tiles)
        if copies:
            out.append(Ahead(loop, copies, tuple(tiles), loop.stages))
    return out


def _direct(x: s.Stmt, tile: str) -> bool:
    """Does the statement itself, not one inside it, mention the tile?"""
    if isinstance(x, s.For | s.If | s.While | s.Launch):
        heads = [getattr(x, name) for name in ("start", "stop", "step", "condition") if hasattr(x, name)]
        return any(buffer.name == tile for head in heads for buffer in buffers(head))
    return any(buffer.name == tile for buffer in buffers(x))


def _writes(x: s.Stmt, tile: str) -> bool:
    if isinstance(x, s.Parallel):
        return any(_writes(inner, tile) for inner in walk(x.body) if isinstance(inner, s.Stmt))
    match x:
        case s.Store() | s.Atomic():
            return x.buffer.name == tile
        case s.Copy() | s.Fill() | s.Reduce() | s.Scan():
            return x.target.buffer.name == tile
        case s.Gemm():
            return x.c.buffer.name == tile
    return False


def _scalars(loop: s.For, copy: s.Copy) -> tuple[s.Let, ...] | None:
    """The names of this iteration that the copy needs, in order; None where one of them is not known ahead."""
    lets = {x.var.name: x for x in loop.body if isinstance(x, s.Let)}
    changed = {x.var.name for x in walk(loop.body) if isinstance(x, s.Assign)}
    need: set[str] = set()
    todo: list[Any] = [copy.source, copy.target]
    while todo:
        for node in walk(todo.pop()):
            if isinstance(node, e.Load) and node.buffer.on_chip:
                return None
            if not isinstance(node, e.Var) or node.name in need:
                continue
            if node.name in changed:
                return None
            if node.name in lets:
                need.add(node.name)
                todo.append(lets[node.name].value)
    return tuple(x for name, x in lets.items() if name in need)


def run(cx: Context, ahead: Ahead, compute: Callable[[s.For, e.Expr], None]) -> None:
    """The loop. compute: makes the statements of an iteration, given the version of its tiles."""
    loop, stages = ahead.loop, ahead.stages
    filled = cx.let("filled", a.const(stages - 1), mutable=True)
    read = cx.let("read", a.const(0), mutable=True)
    cx.sync()  # nobody reads what an earlier run of the loop left
    with cx.unroll(stages - 1, "n") as n:
        at = a.add(loop.start, n)
        with cx.when(a.less(at, loop.stop)):
            _start(cx, ahead, at, n)
        cx.op("cp_async_commit")
    with cx.block() as body, cx.ranges.loop((loop.var,), (loop.stop,), loop.start):
        cx.op("cp_async_wait", pending=stages - 2)
        cx.sync()
        later = a.add(loop.var, stages - 1)
        with cx.when(a.less(later, loop.stop)):
            _start(cx, ahead, later, filled)
        cx.op("cp_async_commit")
        _next(cx, filled, stages)
        compute(loop, cx.let("version", read))
        _next(cx, read, stages)
    cx.emit(replace(loop, kind="serial", body=tuple(body)))


def _next(cx: Context, version: e.Var, stages: int) -> None:
    following = a.add(version, 1)
    cx.emit(s.Assign(version, build.select(a.equal(following, stages), a.const(0), following)))


def _start(cx: Context, ahead: Ahead, at: e.Expr, version: e.Expr) -> None:
    """The copies of iteration `at`; names of that iteration get names of their own."""
    loop, named = ahead.loop, {ahead.loop.var.name: at}

    def change(node: Any) -> Any:
        return named.get(node.name, node) if isinstance(node, e.Var) else node

    needed = {x.var.name: x for copy in ahead.copies for x in _scalars(loop, copy) or ()}
    for let in (x for x in loop.body if isinstance(x, s.Let) and x.var.name in needed):
        named[let.var.name] = cx.let(let.var.name, transform(let.value, change))
    for copy in ahead.copies:
        tile = replace(cx.tiles[copy.target.buffer.name], slot=version)
        load(cx, transform(copy, change), tile)


# One copy


def load(cx: Context, copy: s.Copy, tile: SharedTile) -> None:
    """Starts it; by cp.async where it may, else it is done on return, with a note."""
    reason = why_no_cp_async(copy, tile)
    if reason is not None and copy.prefer in ("cp_async", "tma"):
        cx.refuse(copy, "copy", reason, "drop prefer, or mend that")
    if reason is None:
        _cp_async(cx, copy, tile, _width(copy, tile))
        return
    if cx.warps is not None and copy.prefer != "plain":
        cx.note(copy.span, "copy", "loaded through registers, not by cp.async", reason)
    thread_loads(cx, copy, tile, cx.threads, cx.thread)


def why_no_cp_async(copy: s.Copy, tile: SharedTile) -> str | None:
    """The first rule of cp.async that this copy breaks."""
    region, tensor = copy.source, copy.source.buffer
    if copy.prefer in ("plain", "tma"):
        return f"prefer={copy.prefer!r} asks for something else"
    if tensor.dtype != tile.dtype:
        return f"{tensor.name} is {tensor.dtype}, the tile {tile.dtype}"
    if copy.pad != e.Const(copy.pad.dtype, 0.0):
        return "it pads with something else than 0"
    if tensor.strides is not None and tensor.strides[-1] != a.const(1):
        return f"the last stride of {tensor.name} is not 1"
    if (
        not region.kept
        or region.kept[-1] != len(tensor.shape) - 1
        or copy.target.kept[-1] != len(copy.target.offsets) - 1
    ):
        return "the box does not end in the last dimension"
    if not all(isinstance(copy.target.extents[i], e.Const) for i in copy.target.kept):
        return "the box has an extent known only at run time"
    if not _width(copy, tile):
        return f"no 4 bytes of {tensor.name} surely lie side by side and aligned"
    return None


def _width(copy: s.Copy, tile: SharedTile) -> int:
    """Bytes of one cp.async: what of 16, 8 and 4 divides all places; 0 where none does."""
    size, tensor = tile.dtype.bytes, copy.source.buffer
    for bytes in (16, 8, 4):
        count = bytes // size
        if count == 0 or (bytes > size and tensor.align != 16):
            continue
        extent = int(copy.target.extents[-1].value)  # type: ignore[attr-defined]
        rows_fit = tile.columns * size % bytes == 0
        offsets = copy.source.offsets[-1], copy.target.offsets[-1]
        if rows_fit and extent % count == 0 and all(multiple(x, count) for x in offsets):
            return bytes
    return 0


def _cp_async(cx: Context, copy: s.Copy, tile: SharedTile, bytes: int) -> None:
    source, target = copy.source, copy.target
    count = bytes // tile.dtype.bytes
    extents = [int(target.extents[i].value) for i in target.kept]  # type: ignore[attr-defined]
    extents[-1] //= count
    total = 1
    for extent in extents:
        total *= extent
    fixed = {axis: cx.let("at", x) for axis, x in enumerate(source.offsets) if not isinstance(x, e.Const)}
    each = total // cx.threads if total % cx.threads == 0 else 0

    def one(number: e.Expr) -> None:
        left, indices = number, list[e.Expr]()
        for extent in reversed(extents):
            indices.insert(0, a.digit(left, 1, extent) if extent & (extent - 1) == 0 else a.mod(left, extent))
            left = build.binary("shr", left, a.const(extent.bit_length() - 1)) if extent & (extent - 1) == 0 else (
                build.binary("floordiv", left, a.const(extent))
            )  # fmt: skip
        indices[-1] = a.mul(indices[-1], count)
        where, there = _moved(source, indices, fixed), _moved(target, indices, {})
        cx.op(
            "cp_async", cx.address(elements.place(tile, there)),
            build.load(source.buffer, where, guards=(False,) * len(where)),
            _inside(cx, source, where, bytes, count), span=copy.span, bytes=bytes,
        )  # fmt: skip

    if 0 < each <= UNROLLED:
        with cx.unroll(each, "n") as n:
            one(a.add(cx.thread, a.mul(n, cx.threads)))
        return
    step = cx.var("n")
    with cx.block() as body:
        one(step)
    cx.emit(
        s.For(step, cx.thread, a.const(total), a.const(cx.threads), tuple(body), "serial", span=copy.span)
    )


def _moved(region: e.Region, indices: list[e.Expr], fixed: dict[int, e.Var]) -> tuple[e.Expr, ...]:
    moved = dict(zip(region.kept, indices, strict=True))
    return tuple(a.add(fixed.get(axis, x), moved.get(axis, 0)) for axis, x in enumerate(region.offsets))


def _inside(cx: Context, region: e.Region, where: tuple[e.Expr, ...], bytes: int, count: int) -> e.Expr:
    """How many bytes lie inside the tensor, from the first on."""
    tests, last = [], len(where) - 1
    whole = multiple(region.buffer.shape[-1], count)
    for axis, (index, extent, offset) in enumerate(
        zip(where, region.buffer.shape, region.offsets, strict=True)
    ):
        if axis not in region.kept and cx.ranges.within(offset, extent):
            continue
        low = cx.ranges.of(offset)[0]
        if low is None or low < 0:
            tests.append(build.binary("ge", index, a.const(0)))
        if axis != last or whole:
            tests.append(a.less(index, extent))
    real: e.Expr = a.const(bytes)
    if not whole:
        left = a.mul(a.sub(region.buffer.shape[-1], where[-1]), bytes // count)
        real = build.binary("max", build.binary("min", left, a.const(bytes)), a.const(0))
    return build.select(a.every(*tests), real, a.const(0))
