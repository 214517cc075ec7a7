"""How results leave: registers to swizzled shared boxes with stmatrix, then by the copy engine; two boxes take turns."""

from dataclasses import dataclass

from mortice.tile.dtypes import f32, u32
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu.context import Context
from mortice.tile.passes.gpu.fragments import Layout
from mortice.tile.passes.gpu.rings import tensor_map_of
from mortice.tile.passes.ranges import affine

BOX_ROWS = 64
BOX_BYTES = BOX_ROWS * 128
BOXES = 2  # of each warpgroup
FIRST_BARRIER = 1


def why_no_store(cx: Context, x: s.Copy) -> str | None:
    """The first rule that keeps a result from leaving by the copy engine."""
    region, tensor = x.target, x.target.buffer
    layout = cx.layouts[x.source.buffer.name]
    if tensor.align != 16 and tensor.name not in cx.aligned:
        return f"the base or a stride of {tensor.name} is no multiple of 16 bytes"
    if tensor.strides is not None and tensor.strides[-1] != a.const(1):
        return f"the last stride of {tensor.name} is not 1"
    if tensor.dtype.name not in ("bf16", "f16"):
        return f"{tensor.name} is {tensor.dtype}, stmatrix moves 16 bits"
    if len(region.kept) != 2 or region.kept[-1] != len(tensor.shape) - 1 or len(tensor.shape) > 5:
        return f"the box of {tensor.name} has not two dimensions that end in the last"
    if layout.copies or len(layout.shape) != 2 or columns_of(cx, x) % 64:
        return "columns of a warpgroup are no multiple of 64"
    if x.source.buffer.name in cx.packed:
        return f"{x.source.buffer.name} is packed for the matrix unit"
    return None


def columns_of(cx: Context, x: s.Copy) -> int:
    """Of one warpgroup."""
    return _columns(cx.layouts[x.source.buffer.name])


def _columns(layout: Layout) -> int:
    last = layout.dims[1][-1] if layout.dims[1] else None
    side = last is not None and last.place == "thread" and last.stride == 128
    return layout.shape[1] // (last.size if side and last is not None else 1)


def store_boxes(cx: Context, x: s.Copy) -> None:
    layout, tensor = cx.layouts[x.source.buffer.name], x.target.buffer
    columns = columns_of(cx, x)
    side = columns != layout.shape[1]
    blocks = layout.shape[0] // 64 // (1 if side else cx.groups)
    boxes = columns // 64
    tensor_map = tensor_map_of(cx, tensor, x.target.kept, BOX_ROWS, 64, 128)
    group = a.call("warpgroup")
    in_group = cx.let("in_group", a.digit(cx.thread, 1, 128))
    lane = cx.let("lane_", a.digit(cx.thread, 1, 32))
    row = cx.let(
        "row_",
        a.add(a.mul(a.digit(cx.thread, 32, 4), 16), a.digit(lane, 1, 8), a.mul(a.digit(lane, 8, 2), 8)),
    )
    half, phase = cx.let("half_", a.digit(lane, 16, 2)), cx.let("phase_", a.digit(lane, 1, 8))
    first = cx.let("staging_", a.add(a.mul(group, BOXES * BOX_BYTES), a.mul(row, 128), cx.staging))
    barrier = a.add(group, FIRST_BARRIER)
    issuer = a.equal(in_group, 0)
    source = cx.registers[x.source.buffer.name]
    words = cx.array("words", u32, 4)
    if cx.adds:  # which may still read any of the boxes
        with cx.when(issuer):
            cx.op("bulk_wait", pending=0, read_only=True)
    for block in range(blocks):
        with cx.unroll(boxes, "g") as g:
            turn = a.mul(a.digit(a.add(g, block * boxes), 1, BOXES), BOX_BYTES)
            with cx.when(issuer):
                # Of an even number of boxes the one before last had this place; of an odd number the last may have.
                cx.op("bulk_wait", pending=0 if blocks * boxes % 2 else BOXES - 1, read_only=True)
            cx.op("sync", barrier, a.const(128))
            with cx.unroll(4, "j") as j:
                base = a.add(a.mul(g, 32), a.mul(j, 8), block * columns // 2)
                for w in range(4):
                    pair = [build.load(source, (a.add(base, 2 * w + k),)) for k in (0, 1)]
                    cx.emit(s.Store(words, (a.const(w),), cx.pack(tensor.dtype, pair[0], pair[1])))
                chunk = build.binary("xor", a.add(a.mul(j, 2), half), phase)
                cx.op(
                    "stmatrix", cx.address(a.add(first, a.mul(chunk, 16), turn)), a.box(words, 0, 4),
                    span=x.span, count=4, transpose=False,
                )  # fmt: skip
            cx.op("fence_async")
            cx.op("sync", barrier, a.const(128))
            where = list(x.target.offsets)
            top, left = x.target.kept
            where[top] = a.add(where[top], block * 64, a.const(0) if side else a.mul(group, blocks * 64))
            where[left] = a.add(where[left], a.mul(g, 64), a.mul(group, columns) if side else a.const(0))
            with cx.when(issuer):
                at = a.add(a.mul(group, BOXES * BOX_BYTES), turn, cx.staging)
                cx.op(
                    "tma_store",
                    a.box(tensor_map.buffer, 0),
                    cx.address(at),
                    *reversed(where),
                    span=x.span,
                    hint="",
                )
                cx.op("bulk_commit")


@dataclass(frozen=True, slots=True)
class Added:
    """A fragment added to a box of a tensor; kept: dimensions of the tensor along its rows and its columns."""

    fragment: e.Buffer
    tensor: e.Buffer
    offsets: tuple[e.Expr, ...]
    kept: tuple[int, int]


def added_tile(cx: Context, x: s.Parallel) -> Added | None:
    """The parts of a loop that adds each element of an accumulator to one of a tensor, if the copy engine may do it."""
    if len(x.body) != 1 or not isinstance(x.body[0], s.Atomic) or len(x.vars) != 2 or not cx.groups:
        return None
    atomic, names = x.body[0], [var.name for var in x.vars]
    value, tensor = atomic.value, atomic.buffer
    if atomic.op != "add" or tensor.dtype != f32 or not isinstance(value, e.Load) or value.indices != x.vars:
        return None
    layout = cx.layouts.get(value.buffer.name)
    if layout is None or value.buffer.name not in cx.sums or layout.shape[0] % 64 or layout.padded(1):
        return None
    if (tensor.align != 16 and tensor.name not in cx.aligned) or len(tensor.shape) > 5:
        return None
    if (tensor.strides is not None and tensor.strides[-1] != a.const(1)) or _columns(layout) % 32:
        return None
    offsets, kept = list[e.Expr](), [-1, -1]
    for axis, index in enumerate(atomic.indices):
        split = affine(index, dict.fromkeys(names))
        if split is None or any(factor != 1 for factor in split[0].values()) or len(split[0]) > 1:
            return None
        for name in split[0]:
            kept[names.index(name)] = axis
        offsets.append(split[1])
    if kept[1] != len(tensor.shape) - 1 or not 0 <= kept[0] < kept[1]:
        return None
    return Added(value.buffer, tensor, tuple(offsets), (kept[0], kept[1]))


def add_boxes(cx: Context, x: s.Parallel, added: Added) -> None:
    """Registers to boxes of 32 columns, which the copy engine adds to what lies there, as many at once as there are."""
    cx.adds = True
    layout, source = cx.layouts[added.fragment.name], cx.registers[added.fragment.name]
    columns = _columns(layout)
    side = columns != layout.shape[1]
    blocks = layout.shape[0] // 64 // (1 if side else cx.groups)
    tensor_map = tensor_map_of(cx, added.tensor, added.kept, BOX_ROWS, 32, 128)
    group = a.call("warpgroup")
    lane = cx.let("lane_", a.digit(cx.thread, 1, 32))
    row = cx.let("row_", a.add(a.mul(a.digit(cx.thread, 32, 4), 16), a.digit(lane, 4, 8)))
    phase, half = cx.let("phase_", a.digit(lane, 4, 8)), cx.let("half_", a.digit(lane, 2, 2))
    first = cx.let(
        "staging_",
        a.add(a.mul(group, BOXES * BOX_BYTES), a.mul(row, 128), a.mul(a.digit(lane, 1, 2), 8), cx.staging),
    )
    barrier = a.add(group, FIRST_BARRIER)
    issuer = a.equal(a.digit(cx.thread, 1, 128), 0)
    words = cx.array("words", u32, 2)
    for block in range(blocks):
        for left in range(0, columns, 32 * BOXES):
            boxes = range(min(BOXES, (columns - left) // 32))
            with cx.when(issuer):
                cx.op("bulk_wait", pending=0, read_only=True)
            cx.op("sync", barrier, a.const(128))
            for box in boxes:
                with cx.unroll(4, "j") as j:
                    chunk = build.binary("xor", a.add(a.mul(j, 2), half), phase)
                    for below in range(2):
                        base = a.add(a.mul(j, 4), (block * columns + left + 32 * box) // 2 + 2 * below)
                        for w in range(2):
                            value = build.bitcast(build.load(source, (a.add(base, w),)), u32)
                            cx.emit(s.Store(words, (a.const(w),), value))
                        place = a.add(first, a.mul(chunk, 16), box * BOX_BYTES + below * 8 * 128)
                        cx.op("store_shared", cx.address(place), a.box(words, 0, 2), span=x.span, bytes=8)
            cx.op("fence_async")
            cx.op("sync", barrier, a.const(128))
            with cx.when(issuer):
                for box in boxes:
                    where, (top, last) = list(added.offsets), added.kept
                    where[top] = a.add(
                        where[top], block * 64, a.const(0) if side else a.mul(group, blocks * 64)
                    )
                    where[last] = a.add(
                        where[last], left + 32 * box, a.mul(group, columns) if side else a.const(0)
                    )
                    at = a.add(a.mul(group, BOXES * BOX_BYTES), box * BOX_BYTES + cx.staging)
                    cx.op(
                        "tma_reduce_add",
                        a.box(tensor_map.buffer, 0),
                        cx.address(at),
                        *reversed(where),
                        span=x.span,
                    )
                cx.op("bulk_commit")


def finish(cx: Context) -> None:
    """Shared memory must outlive the stores that read it."""
    with cx.when(a.equal(a.digit(cx.thread, 1, 128), 0)):
        cx.op("bulk_wait", pending=0, read_only=True)


def fragment_to_shared(cx: Context, x: s.Copy, fragment: e.Buffer) -> None:
    """An accumulator, narrowed, as an operand tile of all warpgroups."""
    tile = cx.tiles[x.target.buffer.name]
    layout = cx.layouts[fragment.name]
    columns = columns_of(cx, x)
    side = columns != layout.shape[1]
    blocks = layout.shape[0] // 64 // (1 if side else cx.groups)
    if tile.dtype.name not in ("bf16", "f16") or columns % 16 or fragment.name in cx.packed:
        cx.refuse(x, "copy", f"{fragment.name} to a shared tile of {tile.dtype}, {columns} columns a warpgroup",
                  "use bf16 or f16 and columns by 16")  # fmt: skip
    group = a.call("warpgroup")
    lane = cx.let("lane_", a.digit(cx.thread, 1, 32))
    row = a.add(a.mul(a.digit(cx.thread, 32, 4), 16), a.digit(lane, 1, 8), a.mul(a.digit(lane, 8, 2), 8))
    row = cx.let("row_", a.add(row, a.const(0) if side else a.mul(group, blocks * 64)))
    half = cx.let("half_", a.mul(a.digit(lane, 16, 2), 8))
    left = a.mul(group, columns) if side else a.const(0)
    words = cx.array("words", u32, 4)
    source = cx.registers[fragment.name]
    cx.sync()
    for block in range(blocks):
        with cx.unroll(columns // 16, "j") as j:
            base = a.add(a.mul(j, 8), block * columns // 2)
            for w in range(4):
                pair = [build.load(source, (a.add(base, 2 * w + k),)) for k in (0, 1)]
                cx.emit(s.Store(words, (a.const(w),), cx.pack(tile.dtype, pair[0], pair[1])))
            place = tile.address(a.add(row, block * 64), a.add(left, a.mul(j, 16), half))
            cx.op("stmatrix", cx.address(place), a.box(words, 0, 4), span=x.span, count=4, transpose=False)
    cx.op("fence_async")
    cx.sync()
