"""Statements that each thread does on its own registers: loops, fills, reductions, and plain copies to and from tensors."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mortice.tile.dtypes import boolean, f32, i32, u32
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import transform, walk
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu.context import Context
from mortice.tile.passes.gpu.elements import load_elements, load_shared, store_shared
from mortice.tile.passes.gpu.fragments import Layout, slot, spread
from mortice.tile.passes.gpu.inference import loop_layout
from mortice.tile.passes.ranges import affine

IDENTITY = {"sum": 0.0, "max": float("-inf"), "min": float("inf"), "absmax": 0.0}
FOLD = {"sum": "add", "max": "max", "min": "min", "absmax": "max", "any": "or", "all": "and"}


# Loops


def parallel(cx: Context, loop: s.Parallel) -> None:
    extents = tuple(_fixed(cx, loop, extent) for extent in loop.extents)
    layout = loop_layout(loop, cx.layouts) or spread(extents, cx.threads, 1)
    shared = any(isinstance(x, s.Store) and x.buffer.scope == "shared" for x in walk(loop.body))
    if shared:
        cx.sync()
    always = uniform_condition(cx, loop, layout)
    if always is None:
        _iterate(cx, loop, layout)
    else:
        with cx.block() as fast:
            _iterate(cx, transform(loop, _all_true(loop)), layout)
        with cx.block() as slow:
            _iterate(cx, loop, layout)
        cx.emit(s.If(always, tuple(fast), tuple(slow)))
    if shared:
        if cx.groups:
            cx.op("fence_async")
        cx.sync()


def _iterate(cx: Context, loop: s.Parallel, layout: Layout) -> None:
    rows = _shared_rows(cx, loop, layout)
    together = min(rows.values(), default=1)
    with cx.unroll(layout.slots, step=together) as first:
        read: dict[str, list[e.Expr]] = {}
        for number in range(together):
            i = a.add(first, number)
            renamed = {var.name: cx.var(var.name) for var in loop.vars}
            for dim, var in enumerate(loop.vars):
                cx.emit(s.Let(renamed[var.name], layout.index(dim, cx.thread, i)))
            for node in _row_reads(loop, rows) if not number else ():
                at = (renamed[node.indices[0].name],)  # type: ignore[attr-defined]
                read[node.buffer.name] = load_elements(cx, cx.tiles[node.buffer.name], at, 2)
            inside = [
                a.less(renamed[var.name], extent)
                for dim, (var, extent) in enumerate(zip(loop.vars, loop.extents, strict=True))
                if layout.padded(dim) or extent != a.const(layout.shape[dim])
            ]
            with cx.when(a.every(*inside)):
                known = {name: pair[number % 2] for name, pair in read.items()}
                for statement in loop.body:
                    _element(cx, statement, loop, layout, i, renamed, known)


def _shared_rows(cx: Context, loop: s.Parallel, layout: Layout) -> dict[str, int]:
    """Shared rows that the loop reads at one of its variables, of which two elements lie side by side in two registers: how
    many registers in a row need no others than these two. They are read once, as a vector."""
    names, found = [var.name for var in loop.vars], dict[str, int]()
    written = {x.buffer.name for x in walk(loop.body) if isinstance(x, s.Store)}
    for node in walk(loop.body):
        if not isinstance(node, e.Load) or node.buffer.scope != "shared" or len(node.indices) != 1:
            continue
        index, tile = node.indices[0], cx.tiles[node.buffer.name]
        if (
            not isinstance(index, e.Var)
            or index.name not in names
            or node.buffer.name in written
            or tile.width
        ):
            continue
        dim = names.index(index.name)
        held = [d for d in layout.dims[dim] if d.place == "slot"]
        whole = not any(layout.padded(d) for d in range(len(names))) and tile.dtype == f32
        if whole and layout.dims[dim][0] == slot(2, 1):
            found[node.buffer.name] = min([d.stride for d in held[1:]], default=layout.slots)
    reads = [x for x in walk(loop.body) if isinstance(x, e.Load) and x.buffer.name in found]
    alike = all(x.indices == y.indices for x in reads for y in reads if x.buffer.name == y.buffer.name)
    return found if alike and len(set(found.values())) == 1 else {}


def _row_reads(loop: s.Parallel, rows: dict[str, int]) -> list[e.Load]:
    reads = [x for x in walk(loop.body) if isinstance(x, e.Load) and x.buffer.name in rows]
    return list({x.buffer.name: x for x in reads}.values())


def _element(  # noqa: C901 - a table of all statements
    cx: Context,
    x: s.Stmt,
    loop: s.Parallel,
    layout: Layout,
    i: e.Expr,
    renamed: dict[str, e.Var],
    known: Mapping[str, e.Expr],
) -> None:
    """known: what shared rows hold at this element."""

    def value(node: Any) -> Any:
        return transform(node, change)

    def change(node: Any) -> Any:
        if isinstance(node, e.Var) and node.name in renamed:
            return renamed[node.name]
        if isinstance(node, e.Load) and node.buffer.scope == "fragment":
            return _read_register(cx, node, loop, layout, i, renamed)
        if isinstance(node, e.Load) and node.buffer.scope == "shared":
            return known.get(node.buffer.name) or load_shared(cx, node.buffer, node.indices)
        return node

    match x:
        case s.Let():
            renamed[x.var.name] = cx.var(x.var.name, x.var.dtype)
            cx.emit(s.Let(renamed[x.var.name], value(x.value), x.mutable))
        case s.Assign():
            cx.emit(s.Assign(renamed.get(x.var.name, x.var), value(x.value)))
        case s.Store() if x.buffer.scope == "fragment":
            if x.buffer.name in cx.packed:
                cx.refuse(
                    x, "store", f"{x.buffer.name} is packed for the matrix unit", "copy a f32 fragment to it"
                )
            register = register_of(cx, x.buffer, x.indices, x, loop, layout, i, renamed, write=True)
            cx.emit(
                s.Store(
                    cx.registers[x.buffer.name],
                    (register,),
                    cx.rounded(value(x.value), x.buffer.dtype),
                    span=x.span,
                )
            )
        case s.Store() if x.buffer.scope == "shared":
            store_shared(cx, x.buffer, tuple(value(j) for j in x.indices), value(x.value))
        case s.Store() | s.Atomic():
            with cx.when(layout.owner(cx.thread)):
                cx.emit(replace(x, indices=tuple(value(j) for j in x.indices), value=value(x.value)))
        case s.If():
            with cx.block() as then:
                for inner in x.then:
                    _element(cx, inner, loop, layout, i, renamed, known)
            with cx.block() as otherwise:
                for inner in x.otherwise:
                    _element(cx, inner, loop, layout, i, renamed, known)
            cx.emit(s.If(value(x.condition), tuple(then), tuple(otherwise)))
        case s.For():
            renamed[x.var.name] = cx.var(x.var.name)
            with cx.block() as body:
                for inner in x.body:
                    _element(cx, inner, loop, layout, i, renamed, known)
            kind = "serial" if x.kind == "pipelined" else x.kind
            cx.emit(
                s.For(
                    renamed[x.var.name],
                    value(x.start),
                    value(x.stop),
                    value(x.step),
                    tuple(body),
                    kind,
                    span=x.span,
                )
            )
        case _:
            cx.refuse(x, type(x).__name__.lower(), "it stands in a parallel loop", "move it out of the loop")


def _read_register(
    cx: Context, x: e.Load, loop: s.Parallel, layout: Layout, i: e.Expr, renamed: dict[str, e.Var]
) -> e.Expr:
    register = register_of(cx, x.buffer, x.indices, x, loop, layout, i, renamed, write=False)
    buffer = cx.registers[x.buffer.name]
    if x.buffer.name in cx.packed:
        word = build.load(buffer, (a.digit(register, 2, 1 << 20),))
        low, high = a.call(f"low_{x.buffer.dtype}", word), a.call(f"high_{x.buffer.dtype}", word)
        return build.select(a.equal(a.digit(register, 1, 2), 0), low, high)
    return build.load(buffer, (register,))


def register_of(
    cx: Context,
    buffer: e.Buffer,
    indices: tuple[e.Expr, ...],
    node: s.Stmt | e.Expr,
    loop: s.Parallel,
    layout: Layout,
    i: e.Expr,
    renamed: dict[str, e.Var],
    write: bool,
) -> e.Expr:
    """Which register of the fragment this iteration means; refused where it lies in another thread."""
    own = cx.layouts[buffer.name]
    positions = {renamed[var.name].name: dim for dim, var in enumerate(loop.vars)}
    positions |= {var.name: dim for dim, var in enumerate(loop.vars)}
    total, used = a.const(0), set()
    for dim, index in enumerate(indices):
        at = positions.get(index.name) if isinstance(index, e.Var) else None
        if at is not None and own.covers(dim, layout, at):
            total = a.add(total, own.register(dim, layout, at, i))
            used.add(at)
        elif isinstance(index, e.Const) and all(d.place == "slot" for d in own.dims[dim]):
            value = int(index.value)
            for d in own.dims[dim]:
                total = a.add(total, value % d.size * d.stride)
                value //= d.size
        else:
            cx.refuse(
                node,
                buffer.name,
                f"element {buffer.name}[...] of this iteration lies in another thread",
                "index fragments by the loop's variables, or go through a shared tile",
            )
    if (
        write
        and len(used) < len(loop.vars)
        and any(
            d.place == "thread" and d.size > 1
            for dim in range(len(loop.vars))
            if dim not in used
            for d in layout.dims[dim]
        )
    ):
        cx.refuse(
            node, buffer.name, "several iterations write one element", "reduce, or drop a loop variable"
        )
    return total


def uniform_condition(cx: Context, loop: s.Parallel, layout: Layout) -> e.Expr | None:
    """A test, the same in all threads of a warpgroup, under which every condition in the loop holds everywhere."""
    conditions = _conditions(loop)
    if not conditions:
        return None
    tests = [_always(cx, x, loop, layout) for x in dict.fromkeys(conditions.values())]
    known = [x for x in tests if x is not None]
    return a.every(*known) if len(known) == len(tests) else None


def _conditions(loop: s.Parallel) -> dict[e.Expr, e.Expr]:
    """Conditions that hang on the loop's variables and on no tensor; each as it stands, and with names of other
    conditions replaced by what they stand for."""
    names = {var.name for var in loop.vars}
    meant: dict[str, e.Expr] = {}

    def spelt_out(x: e.Expr) -> e.Expr:
        out: e.Expr = transform(x, lambda v: meant.get(v.name, v) if isinstance(v, e.Var) else v)
        return out

    def hangs(x: e.Expr) -> bool:
        return any(isinstance(v, e.Var) and v.name in names for v in walk(x)) and not any(
            isinstance(v, e.Load) for v in walk(x)
        )

    found: dict[e.Expr, e.Expr] = {}
    for x in loop.body:
        if isinstance(x, s.Let) and x.var.dtype == boolean:
            meant[x.var.name] = spelt_out(x.value)
            if hangs(meant[x.var.name]):
                found[x.value] = meant[x.var.name]
    for select in (x for x in walk(loop.body) if isinstance(x, e.Select)):
        whole = spelt_out(select.condition)
        if hangs(whole):
            found[select.condition] = whole
    return found


def _all_true(loop: s.Parallel) -> Any:
    conditions = _conditions(loop)

    def change(node: Any) -> Any:
        if isinstance(node, e.Select) and node.condition in conditions:
            return node.then
        if isinstance(node, s.Let) and node.value in conditions:
            return replace(node, value=e.TRUE)
        return node

    return change


def _always(cx: Context, x: e.Expr, loop: s.Parallel, layout: Layout) -> e.Expr | None:
    if isinstance(x, e.Binary) and x.op == "and":
        left, right = _always(cx, x.left, loop, layout), _always(cx, x.right, loop, layout)
        return None if left is None or right is None else a.every(left, right)
    if not isinstance(x, e.Binary) or x.op not in ("lt", "le", "gt", "ge"):
        return None
    low, high = (x.left, x.right) if x.op in ("lt", "le") else (x.right, x.left)
    if not low.dtype.is_integer or not high.dtype.is_integer:
        return None
    split = affine(build.binary("sub", high, low), {var.name: 0 for var in loop.vars})
    if split is None:
        return None
    factors, rest = split
    least = rest
    for dim, var in enumerate(loop.vars):
        factor = factors.get(var.name, 0)
        first, last = _span(cx, layout, dim)
        if factor:
            least = a.add(least, a.mul(first if factor > 0 else last, factor))
    return build.binary("gt" if x.op in ("lt", "gt") else "ge", least, a.const(0))


def _span(cx: Context, layout: Layout, dim: int) -> tuple[e.Expr, e.Expr]:
    """First and last index along a dimension in the running warpgroup."""
    extent, digits = layout.shape[dim], layout.dims[dim]
    if digits and digits[-1].place == "thread" and digits[-1].stride == 128 and digits[-1].size > 1:
        each = extent // digits[-1].size
        first = a.mul(a.call("warpgroup"), each)
        return first, a.add(first, each - 1)
    return a.const(0), a.const(extent - 1)


# Fills, reductions, copies between fragments


def fill(cx: Context, x: s.Fill) -> None:
    buffer = x.target.buffer
    if buffer.scope != "fragment" or buffer.name in cx.packed:
        cx.refuse(x, "fill", f"{buffer.name} is a {buffer.scope} tile", "fill a fragment, or copy")
    value = a.call("zero") if buffer.name in cx.sums and x.value == e.Const(f32, 0.0) else x.value
    with cx.unroll(cx.layouts[buffer.name].slots) as i:
        cx.emit(s.Store(cx.registers[buffer.name], (i,), value, span=x.span))


def move(cx: Context, x: s.Copy) -> None:
    """Fragment to fragment of the same layout."""
    source, target = x.source.buffer, x.target.buffer
    if cx.layouts[source.name] != cx.layouts[target.name]:
        cx.refuse(
            x,
            "copy",
            f"{source.name} and {target.name} lie differently in registers",
            "go through shared memory",
        )
    there = cx.registers[target.name]
    slots = cx.layouts[target.name].slots
    if target.name in cx.packed and source.name not in cx.packed:
        here = cx.registers[source.name]
        with cx.unroll(slots // 2) as i:
            low, high = (build.load(here, (a.add(a.mul(i, 2), k),)) for k in (0, 1))
            cx.emit(s.Store(there, (i,), cx.pack(target.dtype, low, high), span=x.span))
        return
    with cx.unroll(slots) as i:
        cx.emit(s.Store(there, (i,), cx.rounded(register(cx, source, i), target.dtype), span=x.span))


def register(cx: Context, buffer: e.Buffer, i: e.Expr) -> e.Expr:
    if buffer.name not in cx.packed:
        return build.load(cx.registers[buffer.name], (i,))
    word = build.load(cx.registers[buffer.name], (a.digit(i, 2, 1 << 20),))
    low, high = a.call(f"low_{buffer.dtype}", word), a.call(f"high_{buffer.dtype}", word)
    return build.select(a.equal(a.digit(i, 1, 2), 0), low, high)


def reduce(cx: Context, x: s.Reduce) -> None:
    """Registers of a thread first, then lanes by exchange, then warps through shared memory."""
    source, target = x.source.buffer, x.target.buffer
    layout, out = cx.layouts[source.name], cx.layouts[target.name]
    kept = [i for i in range(len(layout.shape)) if i != x.axis]
    if layout.project(kept) != out:
        cx.refuse(
            x, "reduce", f"{target.name} lies differently in registers", "reduce to a fragment of its own"
        )
    there = cx.registers[target.name]
    dtype = there.dtype
    whole = not dtype.is_float
    neutral: float | bool = x.op == "all"
    if dtype != boolean:
        neutral = (
            {"sum": 0, "max": -(2**31), "min": 2**31 - 1, "absmax": 0}[x.op] if whole else IDENTITY[x.op]
        )
    near = [distance for distance in layout.lanes(x.axis) if distance < 32]
    later = target.name in cx.deferred
    far = len(near) < len(layout.lanes(x.axis)) and not later
    part = cx.array("part", dtype, out.slots) if far else there
    with cx.unroll(out.slots) as o:
        old = build.load(there, (o,))
        joins_first = not x.clear and x.op != "sum" and not far
        start = old if joins_first else e.Const(dtype, neutral)
        total = cx.let("total", start, mutable=True)
        count = layout.slots // out.slots
        step = 2 if count % 2 == 0 else 1
        with cx.unroll(count, "r", step) as r:
            values = []
            for k in range(step):
                i = _source_register(layout, x.axis, out, o, a.add(r, k))
                value = register(cx, source, i)
                if x.op == "absmax":
                    value = build.math_call("abs", value)
                if layout.padded(x.axis):
                    inside = a.less(layout.index(x.axis, cx.thread, i), layout.shape[x.axis])
                    value = build.select(inside, value, e.Const(dtype, neutral))
                values.append(value)
            pair = values[0] if step == 1 else build.binary(FOLD[x.op], values[0], values[1])
            cx.emit(s.Assign(total, build.binary(FOLD[x.op], total, pair)))
        for distance in () if later else near:
            other = a.call("shuffle_xor", total, a.const(distance))
            cx.emit(s.Assign(total, build.binary(FOLD[x.op], total, other)))
        if not x.clear and not joins_first and not far:
            cx.emit(s.Assign(total, build.binary(FOLD[x.op], total, old)))
        cx.emit(s.Store(part, (o,), total if far else cx.rounded(total, target.dtype), span=x.span))
    if not far:
        return
    _across_warps(cx, x.op, part, layout.lanes(x.axis))
    with cx.unroll(out.slots) as o:
        result: e.Expr = build.load(part, (o,))
        if not x.clear:
            result = build.binary(FOLD[x.op], result, build.load(there, (o,)))
        cx.emit(s.Store(there, (o,), cx.rounded(result, target.dtype), span=x.span))


def finish_sum(cx: Context, x: s.Reduce) -> None:
    """What each thread has summed for itself through a loop, brought together after it."""
    registers, lanes = cx.registers[x.target.buffer.name], cx.layouts[x.source.buffer.name].lanes(x.axis)
    with cx.unroll(registers.extents[0]) as o:
        for distance in lanes:
            if distance < 32:
                mine: e.Expr = build.load(registers, (o,))
                other = a.call("shuffle_xor", mine, a.const(distance))
                cx.emit(s.Store(registers, (o,), build.binary("add", mine, other)))
    _across_warps(cx, "sum", registers, lanes)


def _across_warps(cx: Context, op: str, part: e.Buffer, lanes: list[int]) -> None:
    """Each register of `part` becomes the fold over the warps at these distances in threads."""
    slots = part.extents[0]
    far = [distance for distance in lanes if distance >= 32]
    if not far:
        return
    word = cx.array("word", u32, 1)
    cx.sync()
    with cx.unroll(slots) as o:
        mine = a.add(a.mul(a.add(a.mul(o, cx.threads), cx.thread), 4), cx.scratch)
        own: e.Expr = build.load(part, (o,))
        own = build.cast(own, i32) if part.dtype == boolean else own
        cx.emit(s.Store(word, (a.const(0),), build.bitcast(own, u32)))
        cx.op("store_shared", cx.address(mine), a.box(word, 0, 1), bytes=4)
    cx.sync()
    first = build.binary("and", cx.thread, a.const(~sum(far) & (cx.threads - 1)))
    places = [0]
    for distance in far:
        places += [place + distance for place in places]
    with cx.unroll(slots) as o:
        for number, place in enumerate(sorted(places)):
            where = a.add(a.mul(a.add(a.mul(o, cx.threads), first, place), 4), cx.scratch)
            cx.op("load_shared", a.box(word, 0, 1), cx.address(where), bytes=4)
            value: e.Expr = build.load(word, (a.const(0),))
            if part.dtype == boolean:
                value = build.binary("ne", value, e.Const(u32, 0))
            else:
                value = build.bitcast(value, part.dtype)
            folded = value if number == 0 else build.binary(FOLD[op], build.load(part, (o,)), value)
            cx.emit(s.Store(part, (o,), folded))


def _source_register(layout: Layout, axis: int, out: Layout, o: e.Expr, r: e.Expr) -> e.Expr:
    total, dim = a.const(0), 0
    for d, digits in enumerate(layout.dims):
        if d == axis:
            width = 1
            for digit in digits:
                if digit.place == "slot" and digit.size > 1:
                    total = a.add(total, a.mul(a.digit(r, width, digit.size), digit.stride))
                    width *= digit.size
        else:
            total = a.add(total, layout.register(d, out, dim, o))
            dim += 1
    return total


def _fixed(cx: Context, node: s.Stmt, extent: e.Expr) -> int:
    if isinstance(extent, e.Const):
        return int(extent.value)
    cx.refuse(
        node, "parallel", "its extent is known only at run time", "loop over a constant and test inside"
    )
