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
            cx.emit(s.Store(registers, (i,), e.Const(registers.dtype, 0.0 if registers.dtype.is_float else 0)))
    inner = x.a.shape[0 if x.transpose_a else 1]
    left = cx.array("left", registers.dtype, rows.slots)
    right = cx.array("right", registers.dtype, columns.slots)
    k = cx.var("k")
    with cx.block() as body:
        with cx.unroll(rows.slots, "r") as r:
            row = _inside(rows.index(0, cx.thread, r), layout.shape[0])
            cx.emit(s.Store(left, (r,), _element(cx, x.a, (k, row) if x.transpose_a else (row, k))))
        with cx.unroll(columns.slots, "c") as c:
            column = _inside(columns.index(0, cx.thread, c), layout.shape[1])
            cx.emit(s.Store(right, (c,), _element(cx, x.b, (column, k) if x.transpose_b else (k, column))))
        with cx.unroll(rows.slots, "r") as r, cx.unroll(columns.slots, "c") as c:
            at = a.add(layout.register(0, rows, 0, r), layout.register(1, columns, 0, c))
            product = build.binary("mul", build.load(left, (r,)), build.load(right, (c,)))
            cx.emit(s.Store(registers, (at,), build.binary("add", build.load(registers, (at,)), product)))
    cx.emit(s.For(k, a.const(0), inner, a.const(1), tuple(body), "serial", span=x.span))
    cx.sync()


def _inside(index: e.Expr, extent: int) -> e.Expr:
    """Registers beyond a tile's edge read its last element: what they hold is used by nobody."""
    return build.binary("min", index, a.const(extent - 1))


def _element(cx: Context, region: e.Region, at: tuple[e.Expr, e.Expr]) -> e.Expr:
    if region.buffer.scope == "fragment":
        return elementwise.load_element(cx, cx.tiles[staged(region.buffer)], at)
    moved = dict(zip(region.kept, at, strict=True))
    where = tuple(a.add(offset, moved.get(axis, 0)) for axis, offset in enumerate(region.offsets))
    return elementwise.load_shared(cx, region.buffer, where)


def _stage(cx: Context, fragment: e.Buffer) -> None:
    layout, tile = cx.layouts[fragment.name], cx.tiles[staged(fragment)]
    with cx.when(layout.owner(cx.thread)), cx.unroll(layout.slots) as i:
        at = tuple(layout.index(dim, cx.thread, i) for dim in range(2))
        inside = [a.less(at[dim], layout.shape[dim]) for dim in range(2) if layout.padded(dim)]
        with cx.when(a.every(*inside)):
            elementwise.store_element(cx, tile, at, build.load(cx.registers[fragment.name], (i,)))
