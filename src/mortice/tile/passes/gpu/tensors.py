"""Copies between tensors and fragments: each thread its own registers, in vectors where they lie side by side in memory."""

from mortice.tile.dtypes import DType, f32, i8, i32, u32
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu.context import Context
from mortice.tile.passes.gpu.elementwise import register
from mortice.tile.passes.gpu.fragments import Layout


def load(cx: Context, x: s.Copy) -> None:
    """Tensor to fragment."""
    layout, target = cx.layouts[x.target.buffer.name], x.target.buffer
    source, there = x.source.buffer, cx.registers[target.name]
    if target.name in cx.packed:
        cx.refuse(x, "copy", f"{target.name} is packed for the matrix unit", "copy to a shared tile")
    vector, whole = _vector(cx, x.source, layout, LOADED)
    if x.pad != e.const(0.0, f32):
        vector = 1
    same = source.dtype == target.dtype  # then nothing is rounded

    def one(i: e.Expr) -> None:
        where, guards, inside = _position(cx, x.source, layout, i)
        with cx.when(a.every(*inside)):
            value: e.Expr = build.load(source, where, guards=guards)
            if x.pad != e.const(0.0, f32):
                value = build.select(_in_bounds(source, where, guards), value, x.pad)
            cx.emit(s.Store(there, (i,), value if same else cx.rounded(value, target.dtype), span=x.span))

    if vector == 1:
        with cx.unroll(layout.slots, "i") as i:
            one(i)
        return
    # All loads first, then what is done with them: many are on their way at once.
    count = vector * source.dtype.bytes // 4
    words = cx.array("words", u32, layout.slots // vector * count)
    with cx.unroll(layout.slots, "i", vector) as i:
        at = a.mul(a.digit(i, vector, 1 << 20), count)
        where, guards, inside = _position(cx, x.source, layout, i)
        for w in range(count):
            cx.emit(s.Store(words, (a.add(at, w),), e.Const(u32, 0)))
        with cx.when(a.every(*inside, _in_bounds(source, where, guards, vector, whole))):
            cx.op(
                "load_global", a.box(words, at, count), build.load(source, where, guards=(False,) * len(where)),
                span=x.span, bytes=vector * source.dtype.bytes, hint="",
            )  # fmt: skip
    with cx.unroll(layout.slots, "i", vector) as i:
        at = a.mul(a.digit(i, vector, 1 << 20), count)
        for k in range(vector):
            value = _unpack(words, at, k, source.dtype)
            value = value if same else cx.rounded(value, target.dtype)
            cx.emit(s.Store(there, (a.add(i, k),), value, span=x.span))
        if not whole:
            where, guards, inside = _position(cx, x.source, layout, i)
            with cx.when(a.every(*inside, _straddles(source, where, vector))):
                for k in range(vector):
                    one(a.add(i, k))


def store(cx: Context, x: s.Copy) -> None:
    """Fragment to tensor, by one of the threads that hold a value."""
    layout, target = cx.layouts[x.source.buffer.name], x.target.buffer
    vector, whole = _vector(cx, x.target, layout, STORED)

    def one(i: e.Expr) -> None:
        where, guards, inside = _position(cx, x.target, layout, i)
        with cx.when(a.every(*inside)):
            cx.emit(s.Store(target, where, register(cx, x.source.buffer, i), guards, span=x.span))

    with cx.when(layout.owner(cx.thread)), cx.unroll(layout.slots, "i", vector) as i:
        if vector == 1:
            one(i)
            return
        where, guards, inside = _position(cx, x.target, layout, i)
        words = cx.array("words", u32, vector * target.dtype.bytes // 4)
        per = 4 // target.dtype.bytes
        for w in range(words.extents[0]):
            values = [register(cx, x.source.buffer, a.add(i, w * per + k)) for k in range(per)]
            word = build.bitcast(values[0], u32) if per == 1 else cx.pack(target.dtype, values[0], values[1])
            cx.emit(s.Store(words, (a.const(w),), word))
        with cx.when(a.every(*inside, _in_bounds(target, where, guards, vector, whole))):
            cx.op(
                "store_global", build.load(target, where, guards=(False,) * len(where)), a.box(words, 0, words.extents[0]),
                span=x.span, bytes=vector * target.dtype.bytes, hint="",
            )  # fmt: skip
        if not whole:
            with cx.when(a.every(*inside, _straddles(target, where, vector))):
                for k in range(vector):
                    one(a.add(i, k))


def _position(
    cx: Context, region: e.Region, layout: Layout, i: e.Expr
) -> tuple[tuple[e.Expr, ...], tuple[bool, ...], list[e.Expr]]:
    """Indices in the tensor, which of them need a guard, and tests of the tile's own padding."""
    where: list[e.Expr] = []
    guards: list[bool] = []
    inside: list[e.Expr] = []
    dim = 0
    for axis, offset in enumerate(region.offsets):
        extent = region.buffer.shape[axis]
        if axis not in region.kept:
            where.append(offset)
            guards.append(not cx.ranges.within(offset, extent))
            continue
        index = layout.index(dim, cx.thread, i)
        where.append(a.add(offset, index))
        whole = extent == a.const(layout.shape[dim]) and offset == a.const(0)
        guards.append(not whole)
        if layout.padded(dim):
            inside.append(a.less(index, layout.shape[dim]))
        dim += 1
    return tuple(where), tuple(guards), inside


def _in_bounds(
    buffer: e.Buffer,
    where: tuple[e.Expr, ...],
    guards: tuple[bool, ...],
    vector: int = 1,
    whole: bool = True,
) -> e.Expr:
    """whole: a vector that begins inside ends inside."""
    tests = []
    for axis, (index, extent, guard) in enumerate(zip(where, buffer.shape, guards, strict=True)):
        if guard:
            reach = 0 if whole or axis < len(where) - 1 else vector - 1
            tests += [build.binary("ge", index, a.const(0)), a.less(a.add(index, reach), extent)]
    return a.every(*tests)


def _straddles(buffer: e.Buffer, where: tuple[e.Expr, ...], vector: int) -> e.Expr:
    """Does the end of the last dimension lie within the vector?"""
    extent = buffer.shape[-1]
    return build.binary("gt", a.add(where[-1], vector), extent)


STORED = ("bf16", "f16", "f32")  # as vectors
LOADED = (*STORED, "i8", "u8")


def _vector(cx: Context, region: e.Region, layout: Layout, types: tuple[str, ...]) -> tuple[int, bool]:
    """Elements that lie side by side in a thread's registers and in memory, aligned; and whether a vector that begins
    inside the tensor surely ends inside."""
    tensor = region.buffer
    last = len(tensor.shape) - 1
    if not layout.dims or not region.kept or region.kept[-1] != last or not layout.dims[-1]:
        return 1, True
    first = layout.dims[-1][0]
    if first.place != "slot" or first.stride != 1 or layout.slots == first.size == 1:
        return 1, True
    aligned = tensor.align == 16 or tensor.name in cx.aligned
    unit = tensor.strides is None or tensor.strides[-1] == a.const(1)
    if not aligned or not unit or tensor.dtype.name not in types:
        return 1, True
    vector = min(first.size, 16 // tensor.dtype.bytes)
    while vector > 1 and not (
        vector * tensor.dtype.bytes >= 4
        and multiple(region.offsets[last], vector)
        and layout.slots % vector == 0
    ):
        vector //= 2
    return vector, multiple(tensor.shape[last], vector)


def multiple(x: e.Expr, of: int) -> bool:
    """Is it certain that x is a multiple?"""
    match x:
        case e.Const():
            return int(x.value) % of == 0
        case e.Binary(op="mul"):
            return multiple(x.left, of) or multiple(x.right, of)
        case e.Binary(op="add" | "sub"):
            return multiple(x.left, of) and multiple(x.right, of)
    return of == 1


def _unpack(words: e.Buffer, at: e.Expr, k: int, dtype: DType) -> e.Expr:
    """The k-th number of those that begin with word `at`."""
    word = build.load(words, (a.add(at, k * dtype.bytes // 4),))
    if dtype.bytes == 4:
        return build.bitcast(word, dtype)
    if dtype.bytes == 2:
        return a.call(f"{'high' if k % 2 else 'low'}_{dtype}", word)
    left = build.binary("shl", build.bitcast(word, i32), e.Const(i32, 24 - 8 * (k % 4)))
    signed = build.binary("shr", left, e.Const(i32, 24))
    return signed if dtype == i8 else build.binary("and", signed, e.Const(i32, 255))
