"""Matrix products as `mma` of warps (PTX ISA, 9.7.14.5), operands through ldmatrix: what cards before Hopper have, and what
Hopper takes where a product's shape or types are not for wgmma."""

from mortice.tile import dtypes
from mortice.tile.dtypes import u32
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu import elements
from mortice.tile.passes.gpu.cards import Card
from mortice.tile.passes.gpu.context import Context
from mortice.tile.passes.gpu.matrix import PAIRS
from mortice.tile.passes.gpu.tensors import multiple

WHOLE = (dtypes.i8, dtypes.u8)
ACCUMULATORS = 128 * 128  # of four warps; more elements are shared out among eight


def why_no_mma(x: s.Gemm, card: Card) -> str | None:
    """The first rule of `mma` that this product breaks."""
    left, right, c = x.a.buffer, x.b.buffer, x.c.buffer
    whole = left.dtype in WHOLE and right.dtype in WHOLE
    size = left.dtype.bytes
    if not whole and (left.dtype, right.dtype) not in PAIRS:
        return f"no matrix unit multiplies {left.dtype} by {right.dtype} and adds in f32 exactly"
    if not whole and size == 1 and not card.hopper:
        return f"the matrix unit of {card.name} takes no {left.dtype}"
    if c.scope != "fragment" or c.dtype != (dtypes.i32 if whole else dtypes.f32):
        return f"{c.name} is no fragment of {'i32' if whole else 'f32'}"
    if len(c.extents) != 2 or c.extents[0] % 16 or c.extents[1] % 8:
        return f"{c.name} is {' x '.join(map(str, c.extents))}: rows go by 16, columns by 8"
    if right.scope != "shared" or (left.scope != "shared" and (left.scope != "fragment" or size != 2)):
        return f"{left.name} or {right.name} is no shared tile"
    inner = int(x.a.shape[0 if x.transpose_a else 1].value)  # type: ignore[attr-defined]
    if inner % (32 // size):
        return f"the inner extent {inner} is no multiple of {32 // size}"
    if size == 1 and (x.transpose_a or not x.transpose_b):
        return "operands of 8 bits have their inner dimension last in memory"
    for region in (x.a, x.b):
        if region.buffer.scope == "shared" and (
            region.buffer.extents[-1] * size % 16 or not multiple(region.offsets[-1], 16 // size)
        ):
            return f"rows of {region.buffer.name} are no multiple of 16 bytes"
    return None


def arranged(gemms: list[s.Gemm], threads: int | None) -> tuple[int, int] | None:
    """Warps below one another and beside one another, the same for all products of a launch; None where they do not
    divide the results. An operand in registers is its own warp's: then warps share out rows only."""
    held = any(x.a.buffer.scope == "fragment" for x in gemms)
    cells = sum({x.c.buffer.name: x.c.buffer.extents[0] * x.c.buffer.extents[1] for x in gemms}.values())
    counts = [threads // 32] if threads else [8, 4, 2, 1] if cells > ACCUMULATORS else [4, 2, 1]
    for warps in counts:
        ways = [
            (down, warps // down)
            for down in (1, 2, 4, 8, 16)
            if warps % down == 0
            and (warps // down) & (warps // down - 1) == 0
            and not (held and warps != down)
            and all(
                x.c.buffer.extents[0] % (16 * down) == 0
                and x.c.buffer.extents[1] % (8 * (warps // down)) == 0
                for x in gemms
            )
        ]
        if ways:
            return min(ways, key=lambda way: sum(_read(x, way) for x in gemms))
    return None


def _read(x: s.Gemm, way: tuple[int, int]) -> int:
    """Rows and columns of operands that a warp reads."""
    return x.c.buffer.extents[0] // way[0] + x.c.buffer.extents[1] // way[1]


def multiply(cx: Context, x: s.Gemm) -> None:
    """Of all warps; operands are there, and nobody overwrites them before the next sync."""
    layout, d = cx.layouts[x.c.buffer.name], cx.registers[x.c.buffer.name]
    assert cx.warps is not None
    down, across = cx.warps
    rows, columns = layout.shape[0] // down, layout.shape[1] // across
    size = x.a.buffer.dtype.bytes
    step, chunk = 32 // size, 16 // size
    blocks, wide = rows // 16, 16 if columns % 16 == 0 else 8
    inner = int(x.a.shape[0 if x.transpose_a else 1].value)  # type: ignore[attr-defined]
    if x.clear:
        with cx.unroll(layout.slots) as i:
            cx.emit(s.Store(d, (i,), e.Const(d.dtype, 0.0 if d.dtype.is_float else 0)))
    lane, warp = (
        cx.let("lane_", a.digit(cx.thread, 1, 32)),
        cx.let("warp_", a.digit(cx.thread, 32, down * across)),
    )
    top, left = a.mul(a.digit(warp, 1, down), rows), a.mul(a.digit(warp, down, across), columns)
    by_8, second, third = a.digit(lane, 1, 8), a.digit(lane, 8, 2), a.digit(lane, 16, 2)
    held = cx.registers[x.a.buffer.name] if x.a.buffer.scope == "fragment" else None
    ours = cx.array("left", u32, 4 * blocks) if held is None else held
    theirs = cx.array("right", u32, wide // 4)
    kinds: dict[str, int | str | bool] = {
        "k": step,
        "a_type": x.a.buffer.dtype.name,
        "b_type": x.b.buffer.dtype.name,
    }
    with cx.unroll(inner // step, "k") as k:
        if held is None:
            # Four matrices of 8 rows: the upper and the lower 8 rows of the first half of k, then of the second.
            with cx.unroll(blocks, "r") as r:
                row = a.add(top, a.mul(r, 16))
                if x.transpose_a:
                    at = _place(x.a, a.add(a.mul(k, 16), by_8, a.mul(third, 8)), a.add(row, a.mul(second, 8)))
                else:
                    at = _place(
                        x.a, a.add(row, a.digit(lane, 1, 16)), a.add(a.mul(k, step), a.mul(third, chunk))
                    )
                _fetch(cx, x, x.a, ours, a.mul(r, 4), at, 4, x.transpose_a)
        with cx.unroll(columns // wide, "c") as c:
            # Of 8 columns the first and the second half of k, then of the next 8.
            column = a.add(left, a.mul(c, wide))
            if x.transpose_b:
                at = _place(
                    x.b, a.add(column, by_8, a.mul(third, 8)), a.add(a.mul(k, step), a.mul(second, chunk))
                )
            else:
                at = _place(x.b, a.add(a.mul(k, 16), by_8, a.mul(second, 8)), a.add(column, a.mul(third, 8)))
            _fetch(cx, x, x.b, theirs, a.const(0), at, wide // 4, not x.transpose_b)
            with cx.unroll(blocks, "r") as r:
                for half in range(wide // 8):
                    out = a.add(a.mul(r, columns // 2), a.mul(c, wide // 2), 4 * half)
                    first = a.mul(r, 4) if held is None else a.add(a.mul(k, 4), a.mul(r, inner // 4))
                    cx.op(
                        "mma", a.box(d, out, 4), a.box(ours, first, 4), a.box(theirs, 2 * half, 2), span=x.span, **kinds
                    )  # fmt: skip


def _place(region: e.Region, row: e.Expr, column: e.Expr) -> tuple[e.Expr, ...]:
    moved = dict(zip(region.kept, (row, column), strict=True))
    return tuple(a.add(offset, moved.get(axis, 0)) for axis, offset in enumerate(region.offsets))


def _fetch(
    cx: Context, x: s.Gemm, region: e.Region, into: e.Buffer, first: e.Expr, at: tuple[e.Expr, ...], count: int,
    transpose: bool,
) -> None:  # fmt: skip
    place = elements.place(cx.tiles[region.buffer.name], at)
    cx.op(
        "ldmatrix",
        a.box(into, first, count),
        cx.address(place),
        span=x.span,
        count=count,
        transpose=transpose,
    )


def to_shared(cx: Context, x: s.Copy) -> bool:
    """A fragment of pairs to a shared tile, two numbers a store. False where it lies otherwise."""
    source, tile = x.source.buffer, cx.tiles[x.target.buffer.name]
    layout = cx.layouts[source.name]
    digits = layout.dims[-1] if layout.dims else ()
    pairs = bool(digits) and digits[0].place == "slot" and digits[0].stride == 1 and digits[0].size % 2 == 0
    fits = tile.dtype.name in ("bf16", "f16") and source.name not in cx.packed and len(layout.shape) == 2
    if not pairs or not fits or any(layout.padded(dim) for dim in range(2)):
        return False
    if not multiple(x.target.offsets[-1], 2) or tile.columns % 2 or len(x.target.kept) != 2:
        return False
    word = cx.array("word", u32, 1)
    registers = cx.registers[source.name]
    cx.sync()
    with cx.when(layout.owner(cx.thread)), cx.unroll(layout.slots, "i", 2) as i:
        values = [build.load(registers, (a.add(i, k),)) for k in (0, 1)]
        cx.emit(s.Store(word, (a.const(0),), cx.pack(tile.dtype, values[0], values[1])))
        at = _place(x.target, layout.index(0, cx.thread, i), layout.index(1, cx.thread, i))
        place = cx.address(elements.place(tile, at))
        cx.op("store_shared", place, a.box(word, 0, 1), span=x.span, bytes=4)
    cx.sync()
    return True
