"""Matrix products that the matrix unit does not take, as multiplications and additions of each thread: any element type,
any shape, slow. Warps share out the rows of a result, lanes its columns."""

from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu import elementwise
from mortice.tile.passes.gpu.context import Context

THREADS = 256


def staged(fragment: e.Buffer) -> str:
    """Name of the shared tile by which an operand held in registers reaches the other threads."""
    return f"{fragment.name} in shared memory"


def multiply(cx: Context, x: s.Gemm) -> None:
    cx.sync()
    if x.a.buffer.scope == "fragment":
        _stage(cx, x.a.buffer)
        cx.sync()
    layout, registers = cx.layouts[x.c.buffer.name], cx.registers[x.c.buffer.name]
    rows, columns = layout.project([0]), layout.project([1])
    if x.clear:
        with cx.unroll(layout.slots) as i:
            cx.emit(
                s.Store(registers, (i,), e.Const(registers.dtype, 0.0 if registers.dtype.is_float else 0))
            )
    inner = int(x.a.shape[0 if x.transpose_a else 1].value)  # type: ignore[attr-defined]
    step = min(16 // max(x.a.buffer.dtype.bytes, x.b.buffer.dtype.bytes), 8)
    while inner % step:
        step //= 2
    left = cx.array("left", registers.dtype, rows.slots * step)
    right = cx.array("right", registers.dtype, columns.slots * step)
    k = cx.var("k")
    with cx.block() as body:
        with cx.unroll(rows.slots, "r") as r:
            row = _inside(rows.index(0, cx.thread, r), layout.shape[0])
            _take(cx, x.a, row, k, not x.transpose_a, left, r, step)
        with cx.unroll(columns.slots, "c") as c:
            column = _inside(columns.index(0, cx.thread, c), layout.shape[1])
            _take(cx, x.b, column, k, x.transpose_b, right, c, step)
        with cx.unroll(rows.slots, "r") as r, cx.unroll(columns.slots, "c") as c:
            at = a.add(layout.register(0, rows, 0, r), layout.register(1, columns, 0, c))
            total: e.Expr = build.load(registers, (at,))
            for one in range(step):
                x_, y_ = (build.load(b, (a.add(a.mul(i, step), one),)) for b, i in ((left, r), (right, c)))
                total = build.binary("add", total, build.binary("mul", x_, y_))
            cx.emit(s.Store(registers, (at,), total))
    cx.emit(s.For(k, a.const(0), a.const(inner), a.const(step), tuple(body), "serial", span=x.span))
    cx.sync()


def _take(
    cx: Context,
    region: e.Region,
    outer: e.Expr,
    k: e.Expr,
    k_last: bool,
    into: e.Buffer,
    slot: e.Expr,
    step: int,
) -> None:
    """`step` elements along the inner dimension: one vector where they lie side by side."""
    buffer = region.buffer
    tile = cx.tiles[staged(buffer) if buffer.scope == "fragment" else buffer.name]
    vector = step * tile.dtype.bytes
    first = _place(region, (outer, k) if k_last else (k, outer))
    side_by_side = k_last and vector in (4, 8, 16) and tile.columns * tile.dtype.bytes % 16 == 0
    if side_by_side and elementwise.multiple(a.add(region.offsets[-1], 0), step):
        values = elementwise.load_elements(cx, tile, first, step)
    else:
        values = [
            elementwise.load_element(cx, tile, _place(region, (outer, at) if k_last else (at, outer)))
            for at in (a.add(k, one) for one in range(step))
        ]
    for one, value in enumerate(values):
        cx.emit(s.Store(into, (a.add(a.mul(slot, step), one),), value))


def _inside(index: e.Expr, extent: int) -> e.Expr:
    """Registers beyond a tile's edge read its last element: what they hold is used by nobody."""
    return build.binary("min", index, a.const(extent - 1))


def _place(region: e.Region, at: tuple[e.Expr, e.Expr]) -> tuple[e.Expr, ...]:
    """Indices in the region's buffer."""
    moved = dict(zip(region.kept, at, strict=True))
    return tuple(a.add(offset, moved.get(axis, 0)) for axis, offset in enumerate(region.offsets))


def _stage(cx: Context, fragment: e.Buffer) -> None:
    layout, tile = cx.layouts[fragment.name], cx.tiles[staged(fragment)]
    with cx.when(layout.owner(cx.thread)), cx.unroll(layout.slots) as i:
        at = tuple(layout.index(dim, cx.thread, i) for dim in range(2))
        inside = [a.less(at[dim], layout.shape[dim]) for dim in range(2) if layout.padded(dim)]
        with cx.when(a.every(*inside)):
            elementwise.store_element(cx, tile, at, build.load(cx.registers[fragment.name], (i,)))
