"""What each name of `mortice.tile.language` means when a kernel calls it: one function a construct."""

import ast
from collections.abc import Callable
from typing import Any

from mortice.tile.dtypes import DType, f32, i32, index
from mortice.tile.frontend import views
from mortice.tile.frontend.expressions import element
from mortice.tile.frontend.state import Box, Slice, State, describe, full, lift, minus
from mortice.tile.frontend.threads import barrier
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s

Given = dict[str, Any]


def allocate(state: State, node: ast.Call, given: Given, scope: str) -> e.Buffer:
    if not state.in_launch:
        state.fail(
            node, scope, "there is no grid around it", "allocate tiles inside `for ... in tile.grid(...)`"
        )
    if state.in_parallel and scope != "local":
        state.fail(
            node, scope, "it stands in a parallel loop", "allocate it before the loop, or use tile.local"
        )
    shape = given["shape"] if isinstance(given["shape"], tuple) else (given["shape"],)
    extents = tuple(state.constant(x, scope, f"extent {i}", node) for i, x in enumerate(shape))
    if any(extent < 1 for extent in extents):
        state.fail(node, scope, f"the shape is {extents}", "every extent must be at least 1")
    dtype = _dtype(state, node, given["dtype"], scope)
    name = state.fresh(state.target or scope)
    buffer = e.Buffer(name, dtype, tuple(map(e.const, extents)), scope, span=state.span(node))
    state.emit(s.Alloc(buffer, span=state.span(node)))
    if given["fill"] is not None:
        fill(state, node, {"target": buffer, "value": given["fill"]})
    return buffer


def empty(state: State, node: ast.Call, given: Given) -> e.Buffer:
    if state.depth:
        state.fail(
            node, "empty", "it stands inside a loop", "make results at the top of the kernel, before the grid"
        )
    shape = given["shape"] if isinstance(given["shape"], tuple) else (given["shape"],)
    dims = tuple(state.expand(lift(state, x, node, "empty")) for x in shape)
    dtype = _dtype(state, node, given["dtype"], "empty")
    name = state.fresh(state.target or "result")
    buffer = e.Buffer(name, dtype, dims, "global", span=state.span(node))
    state.results.append(buffer)
    return buffer


def copy(state: State, node: ast.Call, given: Given) -> None:
    source, target = (_box(state, node, given[side], "copy") for side in ("source", "target"))
    if source.transposed or target.transposed:
        state.fail(
            node, "copy", "one side is transposed", "copy as it lies and transpose the operand of gemm"
        )
    left, right = settle(state, node, "copy", source, target)
    if right.buffer.name in state.views:
        state.fail(node, "copy", f"its target {right.buffer.name} is a view", "copy to what it is a view of")
    prefer = given["prefer"]
    if prefer not in ("auto", "tma", "cp_async", "plain"):
        state.fail(node, "copy", f"prefer is {prefer!r}", "it is auto, tma, cp_async or plain")
    pad = lift(state, given["pad"], node)
    if left.buffer.dtype.is_float and not pad.dtype.is_float:
        pad = build.cast(pad, f32)
    if left.buffer.name in state.views:
        views.copied(state, left, right, pad, node)
        return
    state.emit(s.Copy(left, right, pad, prefer, span=state.span(node)))


def settle(state: State, node: ast.Call, operator: str, a: Box, b: Box) -> tuple[e.Region, e.Region]:
    """Both boxes with all extents known, in agreement. Dimensions of extent 1 may be missing on one side."""
    kept = [[i for i, item in enumerate(box.items) if isinstance(item, Slice)] for box in (a, b)]
    for mine, other, box in ((kept[0], kept[1], a), (kept[1], kept[0], b)):
        while len(mine) > len(other):
            unit = next((i for i in mine if _extent_of(box, i) == e.const(1)), None)
            if unit is None:
                break
            mine.remove(unit)
    if len(kept[0]) != len(kept[1]):
        problem = f"{describe(a.buffer)} gives {len(kept[0])} dimensions, {describe(b.buffer)} {len(kept[1])}"
        state.fail(node, operator, problem, "index with an integer what is one element wide, slice the rest")
    extents: list[dict[int, e.Expr]] = [{}, {}]
    for i, j in zip(*kept, strict=True):
        x, y = _extent_of(a, i), _extent_of(b, j)
        if x is None and y is None:
            tile, k = (b, j) if b.buffer.on_chip else (a, i)
            item = tile.items[k]
            assert isinstance(item, Slice)
            x = y = minus(tile.buffer.shape[k], item.offset)
        x, y = x or y, y or x
        assert x is not None
        assert y is not None
        if isinstance(x, e.Const) and isinstance(y, e.Const) and x.value != y.value:
            problem = f"dimension {i} of {describe(a.buffer)} is {x.value} wide, {j} of {describe(b.buffer)} {y.value}"
            state.fail(node, operator, problem, "give both the same extent, or slice the wider one")
        # A tile's own extent rules over a tensor's whole dimension: what lies outside reads the pad.
        if b.buffer.on_chip and not a.buffer.on_chip:
            x = y
        elif a.buffer.on_chip and not b.buffer.on_chip:
            y = x
        extents[0][i], extents[1][j] = x, y
    return _region(state, node, a, extents[0]), _region(state, node, b, extents[1])


def fill(state: State, node: ast.Call, given: Given) -> None:
    box = _box(state, node, given["target"], "fill")
    region = whole(state, node, box)
    value = build.coerced(lift(state, given["value"], node, "fill"), region.buffer.dtype)
    state.emit(s.Fill(region, value, span=state.span(node)))


def gemm(state: State, node: ast.Call, given: Given) -> None:
    boxes = [_box(state, node, given[name], "gemm") for name in "abc"]
    a, b, c = (whole(state, node, box) for box in boxes)
    shapes = []
    for name, region, box in zip("abc", (a, b, c), boxes, strict=True):
        if not region.buffer.on_chip:
            state.fail(node, "gemm", f"{name} is {describe(region)}, a tensor", "copy it to a tile first")
        if len(region.shape) != 2:
            state.fail(
                node,
                "gemm",
                f"{name} has {len(region.shape)} dimensions",
                "slice it to two, as in x[0, :, :]",
            )
        rows, columns = (
            state.constant(x, "gemm", f"an extent of {name}", node)
            for x in (region.shape[::-1] if box.transposed else region.shape)
        )
        shapes.append((rows, columns))
    (m, k), (k2, n), (m2, n2) = shapes
    if k != k2:
        problem = f"a is [{m}, {k}], b is [{k2}, {n}]: the inner extents {k} and {k2} disagree"
        state.fail(node, "gemm", problem, "transpose an operand with .T, or change a tile's shape")
    if (m, n) != (m2, n2):
        problem = f"a @ b is [{m}, {n}], c is [{m2}, {n2}]"
        state.fail(node, "gemm", problem, "give c the shape of the product")
    _gemm_types(state, node, a, b, c)
    if boxes[2].transposed:
        state.fail(node, "gemm", "c is transposed", "swap and transpose a and b instead")
    state.emit(
        s.Gemm(a, b, c, boxes[0].transposed, boxes[1].transposed, bool(given["clear"]), span=state.span(node))
    )


def _gemm_types(state: State, node: ast.Call, a: e.Region, b: e.Region, c: e.Region) -> None:
    da, db, dc = a.buffer.dtype, b.buffer.dtype, c.buffer.dtype
    if da.bits == db.bits == 8 and da.is_float and db.is_float:
        da = db
    if da != db:
        state.fail(
            node,
            "gemm",
            f"a is {da}, b is {db}",
            "cast one of them by copying it to a tile of the other type",
        )
    wanted = f32 if da.is_float else i32
    if dc != wanted:
        state.fail(node, "gemm", f"a and b are {da}, c is {dc}", f"accumulate in {wanted}")


def reduce(state: State, node: ast.Call, given: Given, op: str) -> None:
    source, target, axis = _along(state, node, given, f"reduce_{op}")
    want = source.shape[:axis] + source.shape[axis + 1 :]
    if target.shape != want:
        problem = f"without axis {axis}, {describe(source)} has shape {_shape(want)}; the target is {describe(target)}"
        state.fail(node, f"reduce_{op}", problem, "give the target that shape, or another axis")
    state.emit(s.Reduce(op, source, target, axis, bool(given["clear"]), span=state.span(node)))


def scan(state: State, node: ast.Call, given: Given, op: str) -> None:
    source, target, axis = _along(state, node, given, f"cum{op}")
    if source.shape != target.shape:
        state.fail(
            node, f"cum{op}", f"{describe(source)} and {describe(target)} differ", "give both the same shape"
        )
    state.emit(s.Scan(op, source, target, axis, bool(given["reverse"]), span=state.span(node)))


def atomic(state: State, node: ast.Call, given: Given, op: str) -> None:
    target = node.args[0]
    value = given["value"]
    if isinstance(value, e.Buffer | Box):
        _atomic_tile(state, node, given["target"], value, op)
        return
    buffer, indices = element(state, target, f"atomic_{op}")
    if buffer.name in state.views:
        state.fail(node, f"atomic_{op}", f"{buffer.name} is a view", "use what it is a view of")
    state.emit(s.Atomic(op, buffer, indices, lift(state, value, node), span=state.span(node)))


def _atomic_tile(state: State, node: ast.Call, target: Any, value: Any, op: str) -> None:
    """A tile of atomic operations is a parallel loop of them."""
    source, into = settle(
        state, node, f"atomic_{op}", _box(state, node, value, "atomic"), _box(state, node, target, "atomic")
    )
    variables = tuple(e.Var(index, state.fresh(f"i{axis}")) for axis in range(len(source.kept)))

    def at(region: e.Region) -> tuple[e.Expr, ...]:
        lanes = dict(zip(region.kept, variables, strict=True))
        return tuple(
            build.binary("add", offset, lanes[i]) if i in lanes else offset
            for i, offset in enumerate(region.offsets)
        )

    span = state.span(node)
    body = s.Atomic(op, into.buffer, at(into), build.load(source.buffer, at(source), span), span=span)
    state.emit(s.Parallel(variables, source.shape, (body,), span=span))


def math(state: State, node: ast.Call, given: Given, name: str) -> e.Expr:
    return build.math_call(name, lift(state, given["x"], node, name), state.span(node))


def bitcast(state: State, node: ast.Call, given: Given) -> e.Expr:
    value = lift(state, given["value"], node, "bitcast")
    dtype = _dtype(state, node, given["dtype"], "bitcast")
    if value.dtype.bits != dtype.bits:
        state.fail(
            node, "bitcast", f"the value is {value.dtype}, the type {dtype}", "both must be equally wide"
        )
    return build.bitcast(value, dtype, state.span(node))


def whole(state: State, node: ast.AST, box: Box) -> e.Region:
    """A box alone: open extents reach to the end of the buffer."""
    extents = {
        i: item.extent or minus(box.buffer.shape[i], item.offset)
        for i, item in enumerate(box.items)
        if isinstance(item, Slice)
    }
    return _region(state, node, box, extents)


def _region(state: State, node: ast.AST, box: Box, extents: dict[int, e.Expr]) -> e.Region:
    offsets = tuple(item.offset if isinstance(item, Slice) else item for item in box.items)
    widths = tuple(extents.get(i, e.const(1)) for i in range(len(offsets)))
    for i, (offset, width) in enumerate(zip(offsets, widths, strict=True)):
        if box.buffer.on_chip and isinstance(offset, e.Const) and isinstance(width, e.Const):
            end, limit = int(offset.value) + int(width.value), box.buffer.extents[i]
            if offset.value < 0 or end > limit:
                problem = f"dimension {i} reaches from {offset.value} to {end} of {describe(box.buffer)}"
                state.fail(node, "slice", problem, "stay within the tile")
    return e.Region(box.buffer, offsets, widths, tuple(sorted(extents)), span=state.span(node))


def _extent_of(box: Box, i: int) -> e.Expr | None:
    item = box.items[i]
    return item.extent if isinstance(item, Slice) else e.const(1)


def _along(state: State, node: ast.Call, given: Given, operator: str) -> tuple[e.Region, e.Region, int]:
    source, target = (
        whole(state, node, _box(state, node, given[side], operator)) for side in ("source", "target")
    )
    rank = len(source.shape)
    axis = state.constant(given["axis"], operator, "axis", node)
    if not -rank <= axis < rank:
        state.fail(node, operator, f"axis {axis} of {describe(source)}", f"it is from {-rank} to {rank - 1}")
    return source, target, axis % rank


def _box(state: State, node: ast.AST, value: Any, operator: str) -> Box:
    if isinstance(value, e.Buffer):
        value = full(value)
    if isinstance(value, Box):
        if value.buffer.name in state.views and operator != "copy":
            problem = f"{value.buffer.name} is a view"
            state.fail(node, operator, problem, "copy it to a tile first, or read its elements")
        return value
    if isinstance(value, e.Load):
        return Box(value.buffer, value.indices)
    state.fail(
        node, operator, f"{describe(value)} is no tensor, tile or box", "pass a buffer or a slice of one"
    )


def _dtype(state: State, node: ast.AST, value: Any, operator: str) -> DType:
    if not isinstance(value, DType):
        state.fail(
            node, operator, f"{describe(value)} is no element type", "give one such as tile.f32 or A.dtype"
        )
    return value


def _shape(shape: tuple[e.Expr, ...]) -> str:
    return "[" + ", ".join(str(x.value) if isinstance(x, e.Const) else "?" for x in shape) + "]"


def _bound(handler: Callable, **fixed: str) -> Callable[[State, ast.Call, Given], Any]:
    return lambda state, node, given: handler(state, node, given, **fixed)


HANDLERS: dict[str, Callable[[State, ast.Call, Given], Any]] = {
    "empty": empty, "copy": copy, "fill": fill, "gemm": gemm, "bitcast": bitcast, "barrier": barrier, "view": views.view,
    "panels": views.panels,
    **{scope: _bound(allocate, scope=scope) for scope in ("shared", "fragment", "local")},
    **{f"reduce_{op}": _bound(reduce, op=op) for op in ("sum", "max", "min", "absmax")},
    **{f"cum{op}": _bound(scan, op=op) for op in ("sum", "max")},
    **{f"atomic_{op}": _bound(atomic, op=op) for op in s.ATOMICS},
    **{name: _bound(math, name=name) for name in e.MATH if name != "abs"},
}  # fmt: skip
