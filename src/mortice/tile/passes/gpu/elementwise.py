"""Statements that each thread does on its own registers: loops, fills, reductions, and plain copies to and from tensors."""

from dataclasses import replace
from typing import Any

from mortice.tile.dtypes import DType, boolean, f32, i8, i32, u32
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import transform, walk
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu.context import Context
from mortice.tile.passes.gpu.fragments import Layout, spread
from mortice.tile.passes.gpu.inference import loop_layout
from mortice.tile.passes.gpu.tiles import SharedTile
from mortice.tile.passes.ranges import affine

IDENTITY = {"sum": 0.0, "max": float("-inf"), "min": float("inf"), "absmax": 0.0}
FOLD = {"sum": "add", "max": "max", "min": "min", "absmax": "max"}


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
        cx.op("fence_async")
        cx.sync()


def _iterate(cx: Context, loop: s.Parallel, layout: Layout) -> None:
    with cx.unroll(layout.slots) as i:
        renamed = {var.name: cx.var(var.name) for var in loop.vars}
        for dim, var in enumerate(loop.vars):
            cx.emit(s.Let(renamed[var.name], layout.index(dim, cx.thread, i)))
        inside = [
            a.less(renamed[var.name], extent)
            for dim, (var, extent) in enumerate(zip(loop.vars, loop.extents, strict=True))
            if layout.padded(dim) or extent != a.const(layout.shape[dim])
        ]
        with cx.when(a.every(*inside)):
            for statement in loop.body:
                _element(cx, statement, loop, layout, i, renamed)


def _element(  # noqa: C901 - a table of all statements
    cx: Context, x: s.Stmt, loop: s.Parallel, layout: Layout, i: e.Expr, renamed: dict[str, e.Var]
) -> None:
    def value(node: Any) -> Any:
        return transform(node, change)

    def change(node: Any) -> Any:
        if isinstance(node, e.Var) and node.name in renamed:
            return renamed[node.name]
        if isinstance(node, e.Load) and node.buffer.scope == "fragment":
            return _read_register(cx, node, loop, layout, i, renamed)
        if isinstance(node, e.Load) and node.buffer.scope == "shared":
            return load_shared(cx, node.buffer, node.indices)
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
                    _element(cx, inner, loop, layout, i, renamed)
            with cx.block() as otherwise:
                for inner in x.otherwise:
                    _element(cx, inner, loop, layout, i, renamed)
            cx.emit(s.If(value(x.condition), tuple(then), tuple(otherwise)))
        case s.For():
            renamed[x.var.name] = cx.var(x.var.name)
            with cx.block() as body:
                for inner in x.body:
                    _element(cx, inner, loop, layout, i, renamed)
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
        cx.emit(s.Store(there, (i,), cx.rounded(_register(cx, source, i), target.dtype), span=x.span))


def _register(cx: Context, buffer: e.Buffer, i: e.Expr) -> e.Expr:
    if buffer.name not in cx.packed:
        return build.load(cx.registers[buffer.name], (i,))
    word = build.load(cx.registers[buffer.name], (a.digit(i, 2, 1 << 20),))
    low, high = a.call(f"low_{buffer.dtype}", word), a.call(f"high_{buffer.dtype}", word)
    return build.select(a.equal(a.digit(i, 1, 2), 0), low, high)


def reduce(cx: Context, x: s.Reduce) -> None:
    """Registers of a thread first, then lanes by exchange, then warps through shared memory."""
    if x.op not in FOLD:
        cx.refuse(x, "reduce", f"{x.op} is not there yet", "use sum, max, min or absmax")
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
    neutral = {"sum": 0, "max": -(2**31), "min": 2**31 - 1, "absmax": 0}[x.op] if whole else IDENTITY[x.op]
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
                value = _register(cx, source, i)
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
        cx.emit(s.Store(word, (a.const(0),), build.bitcast(build.load(part, (o,)), u32)))
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
            value = build.bitcast(build.load(word, (a.const(0),)), part.dtype)
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


# Tensors


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
            cx.emit(s.Store(target, where, _register(cx, x.source.buffer, i), guards, span=x.span))

    with cx.when(layout.owner(cx.thread)), cx.unroll(layout.slots, "i", vector) as i:
        if vector == 1:
            one(i)
            return
        where, guards, inside = _position(cx, x.target, layout, i)
        words = cx.array("words", u32, vector * target.dtype.bytes // 4)
        per = 4 // target.dtype.bytes
        for w in range(words.extents[0]):
            values = [_register(cx, x.source.buffer, a.add(i, w * per + k)) for k in range(per)]
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


# Elements of shared tiles


def load_shared(cx: Context, buffer: e.Buffer, indices: tuple[e.Expr, ...]) -> e.Expr:
    return load_element(cx, cx.tiles[buffer.name], indices)


def load_element(cx: Context, tile: SharedTile, indices: tuple[e.Expr, ...]) -> e.Expr:
    return load_elements(cx, tile, indices, 1)[0]


def load_elements(cx: Context, tile: SharedTile, indices: tuple[e.Expr, ...], count: int) -> list[e.Expr]:
    """So many side by side along a row, one vector of at most 16 bytes that its address is a multiple of."""
    dtype = tile.dtype
    bytes = count * dtype.bytes
    words = cx.array("words", u32, max(bytes // 4, 1))
    cx.op("load_shared", a.box(words, 0, words.extents[0]), cx.address(_place(tile, indices)), bytes=bytes)
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
    cx.op("store_shared", cx.address(_place(tile, indices)), a.box(word, 0, 1), bytes=dtype.bytes)


def _place(tile: SharedTile, indices: tuple[e.Expr, ...]) -> e.Expr:
    if len(indices) == 1:
        return tile.address(a.const(0), indices[0])
    row = indices[0]
    for index in indices[1:-1]:
        row = a.add(row, index)
    return tile.address(row, indices[-1])


def _fixed(cx: Context, node: s.Stmt, extent: e.Expr) -> int:
    if isinstance(extent, e.Const):
        return int(extent.value)
    cx.refuse(
        node, "parallel", "its extent is known only at run time", "loop over a constant and test inside"
    )
