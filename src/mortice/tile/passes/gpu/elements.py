"""Single elements of shared tiles, to and from registers."""

from mortice.tile.dtypes import DType, f32, i32, u32
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu.context import Context
from mortice.tile.passes.gpu.tiles import SharedTile


def load_shared(cx: Context, buffer: e.Buffer, indices: tuple[e.Expr, ...]) -> e.Expr:
    return load_element(cx, cx.tiles[buffer.name], indices)


def load_element(cx: Context, tile: SharedTile, indices: tuple[e.Expr, ...]) -> e.Expr:
    return load_elements(cx, tile, indices, 1)[0]


def load_elements(cx: Context, tile: SharedTile, indices: tuple[e.Expr, ...], count: int) -> list[e.Expr]:
    """So many side by side along a row, one vector of at most 16 bytes that its address is a multiple of."""
    dtype = tile.dtype
    bytes = count * dtype.bytes
    words = cx.array("words", u32, max(bytes // 4, 1))
    cx.op("load_shared", a.box(words, 0, words.extents[0]), cx.address(place(tile, indices)), bytes=bytes)
    out = []
    for k in range(count):
        value: e.Expr = build.load(words, (a.const(k * dtype.bytes // 4),))
        shift = 8 * (k * dtype.bytes % 4)
        if shift and not (dtype.bytes == 2 and dtype.is_float):
            value = build.binary("shr", value, e.Const(u32, shift))
        out.append(_decoded(value, dtype, shift == 16))
    return out


def _decoded(word: e.Expr, dtype: DType, upper: bool) -> e.Expr:
    """Of the element in the lowest bits of a word (of 16-bit floats: or in the upper half)."""
    if dtype.bytes == 4:
        return build.bitcast(word, dtype)
    if dtype.is_float:
        return a.call(f"{('high' if upper else 'low') if dtype.bytes == 2 else 'wide'}_{dtype}", word)
    bits = e.Const(i32, 32 - dtype.bits)
    left = build.binary("shl", build.bitcast(word, i32), bits)
    if dtype.kind == "b":
        return build.binary("ne", left, e.Const(i32, 0))
    if dtype.kind == "u":
        return build.binary("and", build.bitcast(word, i32), e.Const(i32, (1 << dtype.bits) - 1))
    return build.binary("shr", left, bits)


def store_shared(cx: Context, buffer: e.Buffer, indices: tuple[e.Expr, ...], value: e.Expr) -> None:
    store_element(cx, cx.tiles[buffer.name], indices, value)


def store_element(cx: Context, tile: SharedTile, indices: tuple[e.Expr, ...], value: e.Expr) -> None:
    word, dtype = cx.array("word", u32, 1), tile.dtype
    if dtype.bytes == 4:
        bits = build.bitcast(build.cast(value, dtype), u32)
    elif dtype.bytes == 2 and dtype.is_float:
        bits = cx.pack(dtype, value, e.Const(f32, 0.0))
    elif dtype.is_float:
        bits = a.call(f"narrow_{dtype}", value)
    else:
        bits = build.bitcast(build.cast(value, i32), u32)
    cx.emit(s.Store(word, (a.const(0),), bits))
    cx.op("store_shared", cx.address(place(tile, indices)), a.box(word, 0, 1), bytes=dtype.bytes)


def place(tile: SharedTile, indices: tuple[e.Expr, ...]) -> e.Expr:
    """Byte offset of an element."""
    if len(indices) == 1:
        return tile.address(a.const(0), indices[0])
    row = indices[0]
    for index, extent in zip(indices[1:-1], tile.outer[1:], strict=True):
        row = a.add(a.mul(row, extent), index)
    return tile.address(row, indices[-1])
