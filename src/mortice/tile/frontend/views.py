"""`tile.view`: the same bytes as elements of another type. A view is a buffer of the frontend alone: what is read through it
becomes loads and shifts of the buffer under it."""

import ast
from typing import Any

from mortice.tile import dtypes
from mortice.tile.dtypes import DType, f32, i32, index, u32
from mortice.tile.frontend.state import State, describe
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.passes.panels import SIDE, SIZE, place, squares

BYTES = (dtypes.u8, dtypes.i8)
Indices = tuple[e.Expr, ...]


def view(state: State, node: ast.Call, given: dict[str, Any]) -> e.Buffer:
    base, dtype = given["source"], given["dtype"]
    if not isinstance(base, e.Buffer) or base.name in state.views or not isinstance(dtype, DType):
        state.fail(
            node,
            "view",
            f"it gets {describe(base)}, {describe(dtype)}",
            "give a tensor or tile and an element type",
        )
    if not _known(base.dtype, dtype):
        remedy = "view u8 or i8 as types under a byte, 32-bit types as one another, u16 as bf16"
        state.fail(node, "view", f"{base.dtype} is not seen as {dtype}", remedy)
    count = base.dtype.bits // dtype.bits
    shape = (*base.shape[:-1], build.binary("mul", base.shape[-1], e.const(count)))
    made = e.Buffer(state.fresh(state.target or "view"), dtype, shape, base.scope, span=state.span(node))
    state.views[made.name] = base
    return made


def panels(state: State, node: ast.Call, given: dict[str, Any]) -> e.Buffer:
    base = given["source"]
    if not isinstance(base, e.Buffer) or base.on_chip or base.dtype != dtypes.bf16 or len(base.shape) != 3:
        state.fail(node, "panels", f"it gets {describe(base)}", "give a bf16 tensor [N / 32, K / 32, 1024]")
    fact = build.binary("eq", base.shape[2], e.const(SIZE))
    if fact != e.TRUE:
        state.emit(s.Check(fact, f"{base.name}.shape[2] == {SIZE}", span=state.span(node)))
    shape = tuple(build.binary("mul", extent, e.const(SIDE)) for extent in base.shape[:2])
    made = e.Buffer(state.fresh(state.target or "panels"), base.dtype, shape, "global", span=state.span(node))
    state.views[made.name] = base
    return made


def _in_panels(base: e.Buffer) -> bool:
    """Of a view's base: was it `panels` that made the view? Other views of bf16 are of u16."""
    return base.dtype == dtypes.bf16


def _known(base: DType, to: DType) -> bool:
    return (
        (base in BYTES and to.bits < 8)
        or base.bits == to.bits == 32
        or (base, to) == (dtypes.u16, dtypes.bf16)
    )


def load(state: State, view: e.Buffer, indices: Indices, node: ast.AST) -> e.Expr:
    span, base = state.span(node), state.views[view.name]
    if _in_panels(base):
        return build.load(base, place(*indices), span)
    if base.dtype.bits == view.dtype.bits:
        value: e.Expr = build.load(base, indices, span)
        if view.dtype == dtypes.bf16:
            value = build.binary("shl", build.cast(value, u32), e.Const(u32, 16), span)
            return build.bitcast(value, f32, span)
        return build.bitcast(value, view.dtype, span)
    bits = view.dtype.bits
    parts = e.const(8 // bits)
    byte = build.load(base, (*indices[:-1], build.binary("floordiv", indices[-1], parts, span)), span)
    within = build.binary("mul", build.binary("mod", indices[-1], parts, span), e.const(bits), span)
    shifted = build.binary("shr", byte, build.cast(within, i32, span), span)
    code = build.binary("and", shifted, e.Const(i32, (1 << bits) - 1), span)
    if view.dtype.kind == "i":  # two's complement: the top bit counts negative
        top = e.Const(i32, 1 << (bits - 1))
        return build.binary("sub", build.binary("xor", code, top, span), top, span)
    return _e2m1(code, span) if view.dtype == dtypes.e2m1 else code


def _e2m1(code: e.Expr, span: Any) -> e.Expr:
    """OCP FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. Twice the magnitude is a whole number."""
    mantissa = build.binary("and", code, e.Const(i32, 1), span)
    exponent = build.binary("and", build.binary("shr", code, e.Const(i32, 1), span), e.Const(i32, 3), span)
    normal = build.binary("add", mantissa, e.Const(i32, 2), span)
    shift = build.binary("max", build.binary("sub", exponent, e.Const(i32, 1), span), e.Const(i32, 0), span)
    tiny = build.binary("eq", exponent, e.Const(i32, 0), span)
    twice = build.select(tiny, mantissa, build.binary("shl", normal, shift, span), span)
    value = build.binary("mul", build.cast(twice, f32, span), e.Const(f32, 0.5), span)
    negative = build.binary("gt", code, e.Const(i32, 7), span)
    return build.select(negative, build.unary("neg", value, span), value, span)


def store(state: State, view: e.Buffer, indices: Indices, value: e.Expr, node: ast.AST) -> None:
    base, span = state.views[view.name], state.span(node)
    if _in_panels(base):
        state.fail(node, "=", f"{view.name} is a matrix in panels", f"store to {base.name} itself")
    if base.dtype.bits != view.dtype.bits or view.dtype.bits != 32:
        problem = f"{view.name} is a view of {view.dtype} on {base.dtype}"
        state.fail(
            node, "=", problem, f"two of its elements share a {base.dtype}: put them together and store that"
        )
    new = build.bitcast(build.coerced(value, view.dtype), base.dtype, span)
    state.emit(s.Store(base, indices, new, span=span))


def _whole_squares(target: e.Region) -> bool:
    tile = target.buffer
    whole = target.kept == (0, 1) == tuple(range(len(tile.shape))) and target.extents == tile.shape
    return tile.on_chip and whole and all(x % SIDE == 0 for x in tile.extents)


def copied(state: State, source: e.Region, target: e.Region, pad: e.Expr, node: ast.AST) -> None:
    """A copy out of a view: element by element."""
    span = state.span(node)
    base = state.views[source.buffer.name]
    if _in_panels(base) and pad == e.Const(pad.dtype, 0) and _whole_squares(target):
        first = [squares(offset) for offset in source.offsets]
        if source.kept == (0, 1) and None not in first:
            counts = (*(e.const(x // SIDE) for x in target.buffer.extents), e.const(SIZE))
            box = e.Region(base, (*first, e.const(0)), counts, (0, 1, 2), span=span)  # type: ignore[arg-type]
            state.emit(s.Unpack(box, target, span=span))
            return
    variables = tuple(e.Var(index, state.fresh(f"i{axis}")) for axis in range(len(target.kept)))

    def at(region: e.Region) -> Indices:
        lanes = dict(zip(region.kept, variables, strict=True))
        return tuple(
            build.binary("add", offset, lanes[i]) if i in lanes else offset
            for i, offset in enumerate(region.offsets)
        )

    places = at(source)
    inside: e.Expr = e.TRUE
    for where, extent in zip(places, source.buffer.shape, strict=True):
        if not source.buffer.on_chip:
            inside = build.binary("and", inside, build.binary("lt", where, extent, span), span)
    value = load(state, source.buffer, places, node)
    value = build.select(inside, value, build.coerced(pad, value.dtype), span)
    store_ = s.Store(target.buffer, at(target), build.coerced(value, target.buffer.dtype), span=span)
    state.emit(s.Parallel(variables, target.shape, (store_,), span=span))
