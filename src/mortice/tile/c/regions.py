"""Tile operators on boxes as C loops. The last dimension is the vector; a box that reaches out of its tensor is clipped
by the bounds of the loops, never by a test an element."""

from mortice.tile import dtypes
from mortice.tile.c.expression import Expressions, strides
from mortice.tile.c.names import loaded, name, storage, stored, value
from mortice.tile.c.writer import Writer
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s

FOLD = {
    "sum": "{a} + {x}", "max": "{x} > {a} ? {x} : {a}", "min": "{x} < {a} ? {x} : {a}", "any": "{a} || {x}",
    "all": "{a} && {x}", "absmax": "{x} > {a} ? {x} : {a}",
}  # fmt: skip
CLAUSE = {"sum": "+", "max": "max", "min": "min", "absmax": "max", "any": "||", "all": "&&"}


def start(c: Expressions, region: e.Region) -> str:
    """Address of a box's first element."""
    return f"({name(region.buffer.name)} + {c.offset(region.buffer, region.offsets)})"


def pitch(region: e.Region) -> str:
    """Elements from one row of a two-dimensional box to the next."""
    return strides(region.buffer)[region.kept[0]]


def copy(out: Writer, c: Expressions, x: s.Copy) -> None:
    out.line("{", open=True)
    rank = len(x.source.kept)
    ends = [f"n{i}" for i in range(rank)]
    for i in range(rank):
        extent = x.target.shape[i] if x.target.buffer.on_chip else x.source.shape[i]
        out.line(f"const int64_t n{i} = {c(extent)};")
    _pointer(out, c, "from", x.source)
    _pointer(out, c, "to", x.target)
    padded = not x.source.buffer.on_chip
    _limits(out, c, x.source, "s", ends)
    _limits(out, c, x.target, "t", ends)
    out.line(f"const {value(x.source.buffer.dtype)} pad = {c(x.pad)}; (void)pad;")
    source_ok = ["source_in"]
    out.line("if (target_in) {", open=True)
    for i in range(rank - 1):
        out.line(f"for (int64_t i{i} = t{i}low; i{i} < t{i}high; i{i}++) {{", open=True)
        if padded:
            source_ok.append(f"i{i} >= s{i}low && i{i} < s{i}high")
    last = rank - 1
    if rank == 0:
        item = f"source_in ? {loaded('*from', x.source.buffer.dtype)} : pad"
        out.line(f"*to = {_converted(x, item)};")
        out.close()
        out.close()
        return
    row_from = "from" + "".join(f" + i{i} * f{i}" for i in range(last))
    row_to = "to" + "".join(f" + i{i} * g{i}" for i in range(last))
    out.line(f"const {storage(x.source.buffer.dtype)} *const row = {row_from};")
    out.line(f"{storage(x.target.buffer.dtype)} *const line = {row_to};")
    moved = _element(x, f"row[i * f{last}]")
    if padded:
        out.line(f"const int in = {' && '.join(source_ok)};")
        out.line(f"const int64_t low = in ? MAX(t{last}low, s{last}low) : t{last}high;")
        out.line(f"const int64_t high = in ? MAX(low, MIN(t{last}high, s{last}high)) : t{last}high;")
        out.line(
            f"for (int64_t i = t{last}low; i < low && i < t{last}high; i++) line[i * g{last}] = {_converted(x, 'pad')};"
        )
        out.line("#pragma omp simd")
        out.line(f"for (int64_t i = low; i < high; i++) line[i * g{last}] = {moved};")
        out.line(f"for (int64_t i = high; i < t{last}high; i++) line[i * g{last}] = {_converted(x, 'pad')};")
    else:
        if _narrows(x):
            width = f"t{last}high - t{last}low"
            to = x.target.buffer.dtype
            out.line(f"to_{to}_row(row + t{last}low, line + t{last}low, {width});")
        else:
            out.line("#pragma omp simd")
            out.line(f"for (int64_t i = t{last}low; i < t{last}high; i++) line[i * g{last}] = {moved};")
    for _ in range(rank + 1):
        out.close()


def _narrows(x: s.Copy) -> bool:
    """Rows of float32 without gaps to rows of 16 bits without gaps."""
    unit = all(strides(r.buffer)[r.kept[-1]] == "1" for r in (x.source, x.target))
    return unit and x.source.buffer.dtype == dtypes.f32 and x.target.buffer.dtype in (dtypes.bf16, dtypes.f16)


def pack(out: Writer, c: Expressions, x: s.Copy) -> None:
    """Into a tile laid out for the matrix kernels: see passes/operands.py. What lies outside the source is 0."""
    source, target = x.source, x.target
    kinds = source.buffer.dtype, target.buffer.dtype
    kind = str(kinds[1]) if kinds[0] == kinds[1] else f"{kinds[0]}_{kinds[1]}"
    rows, columns = target.buffer.extents
    to = name(target.buffer.name)
    if target.kept == (1,):
        depth = "" if kinds[0] != kinds[1] else f"{columns}, "
        out.line(f"pack_row_{kind}({start(c, source)}, {c(target.offsets[0])}, {columns}, {depth}{to});")
        return
    out.line("{", open=True)
    _limits(out, c, source, "s", [str(rows), str(columns)])
    there = [f"source_in ? MAX((int64_t)0, s{i}high) : 0" for i in range(2)]
    from_ = f"{start(c, source)}, {pitch(source)}"
    match target.buffer.scope:
        case "panels_a":
            out.line(f"pack_left_{kind}({from_}, {rows}, {columns}, {there[0]}, {there[1]}, {to});")
        case "panels_b":
            out.line(f"pack_{kind}({from_}, 0, {columns}, {rows}, {there[1]}, {there[0]}, {to});")
        case _:
            out.line(f"pack_{kind}({from_}, 1, {rows}, {columns}, {there[0]}, {there[1]}, {to});")
    out.close()


def unpack(out: Writer, c: Expressions, x: s.Unpack) -> None:
    """The tile is where its panels lie, if all of them are there; else a copy, with zeros."""
    source, target = x.source, x.target
    panels, steps, _ = source.buffer.shape
    tall, wide = (int(extent.value) for extent in source.extents[:2] if isinstance(extent, e.Const))
    base, to = name(source.buffer.name), name(target.buffer.name)
    out.line("{", open=True)
    out.line(f"const int64_t p = {c(source.offsets[0])}, s = {c(source.offsets[1])};")
    out.line(f"const int64_t above = {c(panels)}, deep = {c(steps)};")
    out.line(f"if (p >= 0 && s >= 0 && p + {tall} <= above && s + {wide} <= deep)")
    out.line(f"    {to} = (bf16 *)({base} + (p * deep + s) * 1024), {to}pitch__ = deep * 1024;")
    out.line("else {", open=True)
    out.line(f"{to} = {to}here__, {to}pitch__ = {wide} * 1024;")
    out.line(f"copy_panels({base}, above, deep, p, s, {tall}, {wide}, {to});")
    out.close()
    out.close()


def fill(out: Writer, c: Expressions, x: s.Fill) -> None:
    out.line("{", open=True)
    ends = [f"n{i}" for i in range(len(x.target.kept))]
    for i, extent in enumerate(x.target.shape):
        out.line(f"const int64_t n{i} = {c(extent)};")
    _pointer(out, c, "to", x.target)
    _limits(out, c, x.target, "t", ends)
    out.line(f"const {storage(x.target.buffer.dtype)} v = {stored(c(x.value), x.target.buffer.dtype)};")
    out.line("if (target_in) {", open=True)
    for i in range(len(ends)):
        out.line(f"for (int64_t i{i} = t{i}low; i{i} < t{i}high; i{i}++) {{", open=True)
    out.line("to[" + (" + ".join(f"i{i} * g{i}" for i in range(len(ends))) or "0") + "] = v;")
    for _ in range(len(ends) + 2):
        out.close()


def reduce(out: Writer, c: Expressions, x: s.Reduce) -> None:
    """Along the last axis: a vector folded at the end of each row. Along another: rows folded into the target."""
    out.line("{", open=True)
    rank, dtype = len(x.source.kept), x.source.buffer.dtype
    kind = value(x.target.buffer.dtype)
    _pointer(out, c, "from", x.source)
    _pointer(out, c, "to", x.target)
    others = [i for i in range(rank) if i != x.axis]
    for i in others:
        out.line(f"for (int64_t i{i} = 0; i{i} < {c(x.source.shape[i])}; i{i}++) {{", open=True)
    into = "to[" + (" + ".join(f"i{i} * g{k}" for k, i in enumerate(others)) or "0") + "]"
    extent = c(x.source.shape[x.axis])
    item = "from[" + " + ".join(f"i{i} * f{i}" for i in range(rank)) + "]"
    text = loaded(item, dtype)
    text = f"__builtin_fabsf({text})" if x.op == "absmax" else text
    if _folds_at_once(x):
        neutral = {"sum": "0.0f", "max": "-INFINITY", "min": "INFINITY"}[x.op]
        row = "from + " + (" + ".join(f"i{i} * f{i}" for i in others) or "0")
        out.line(f"{into} = fold_{x.op}({row}, {extent}, {neutral if x.clear else into});")
        for _ in range(len(others) + 1):
            out.close()
        return
    first = "0" if x.op in ("sum", "any") else "1" if x.op == "all" else None
    if first is None:
        zero = item.replace(f"i{x.axis} *", "0 *")
        first = loaded(zero, dtype)
        first = f"__builtin_fabsf({first})" if x.op == "absmax" else first
    out.line(f"{kind} a = {first if x.clear else loaded(into, x.target.buffer.dtype)};")
    out.line(f"#pragma omp simd reduction({CLAUSE[x.op]}: a)")
    axis = f"i{x.axis}"
    out.line(f"for (int64_t {axis} = 0; {axis} < {extent}; {axis}++) {{", open=True)
    out.line(f"const {kind} v = {text};")
    out.line(f"a = {FOLD[x.op].format(a='a', x='v')};")
    out.close()
    out.line(f"{into} = {stored('a', x.target.buffer.dtype)};")
    for _ in range(len(others) + 1):
        out.close()


def _folds_at_once(x: s.Reduce) -> bool:
    """Rows of float32 without gaps, by a function of the prelude."""
    source, last = x.source, len(x.source.kept) - 1
    whole = source.buffer.on_chip and source.kept[last] == len(source.buffer.shape) - 1
    types = source.buffer.dtype == x.target.buffer.dtype == dtypes.f32
    return whole and types and x.axis == last and x.op in ("sum", "max", "min")


def scan(out: Writer, c: Expressions, x: s.Scan) -> None:
    out.line("{", open=True)
    rank, kind = len(x.source.kept), value(x.target.buffer.dtype)
    _pointer(out, c, "from", x.source)
    _pointer(out, c, "to", x.target)
    others = [i for i in range(rank) if i != x.axis]
    for i in others:
        out.line(f"for (int64_t i{i} = 0; i{i} < {c(x.source.shape[i])}; i{i}++) {{", open=True)
    extent = c(x.source.shape[x.axis])
    out.line(f"{kind} a = 0;")
    out.line(f"for (int64_t step = 0; step < {extent}; step++) {{", open=True)
    out.line(f"const int64_t i{x.axis} = {f'{extent} - 1 - step' if x.reverse else 'step'};")
    item = loaded("from[" + " + ".join(f"i{i} * f{i}" for i in range(rank)) + "]", x.source.buffer.dtype)
    out.line(f"const {kind} v = {item};")
    out.line(f"a = step ? ({FOLD[x.op].format(a='a', x='v')}) : v;")
    out.line(
        "to[" + " + ".join(f"i{i} * g{i}" for i in range(rank)) + f"] = {stored('a', x.target.buffer.dtype)};"
    )
    for _ in range(len(others) + 2):
        out.close()


def _pointer(out: Writer, c: Expressions, which: str, region: e.Region) -> None:
    """`from` or `to`, and the strides f0.. or g0.. of the dimensions that remain."""
    letter = "f" if which == "from" else "g"
    const = "const " if which == "from" else ""
    out.line(f"{const}{storage(region.buffer.dtype)} *const {which} = {start(c, region)};")
    all_strides = strides(region.buffer)
    for i, axis in enumerate(region.kept):
        out.line(f"const int64_t {letter}{i} = {all_strides[axis]}; (void){letter}{i};")


def _limits(out: Writer, c: Expressions, region: e.Region, letter: str, ends: list[str]) -> None:
    """Where a box lies inside its buffer, in its own coordinates; and whether its dropped dimensions do."""
    word = "source_in" if letter == "s" else "target_in"
    conditions = []
    for i, axis in enumerate(region.kept):
        if region.buffer.on_chip:
            out.line(f"const int64_t {letter}{i}low = 0, {letter}{i}high = {ends[i]};")
            continue
        offset = c(region.offsets[axis])
        limit = c(build.binary("sub", region.buffer.shape[axis], region.offsets[axis]))
        nonnegative = (c.ranges.of(region.offsets[axis])[0] or 0) >= 0 and c.ranges.of(region.offsets[axis])[
            0
        ] is not None
        low = "0" if nonnegative else f"MAX((int64_t)0, -({offset}))"
        out.line(
            f"const int64_t {letter}{i}low = {low}, {letter}{i}high = MIN({ends[i]}, (int64_t)({limit}));"
        )
    for axis, at in enumerate(region.offsets):
        if axis in region.kept or region.buffer.on_chip or c.ranges.within(at, region.buffer.shape[axis]):
            continue
        conditions.append(f"({c(at)}) >= 0 && ({c(at)}) < {c(region.buffer.shape[axis])}")
    out.line(f"const int {word} = {' && '.join(conditions) or '1'}; (void){word};")


def _element(x: s.Copy, item: str) -> str:
    if x.source.buffer.dtype == x.target.buffer.dtype:
        return item
    return _converted(x, loaded(item, x.source.buffer.dtype))


def _converted(x: s.Copy, text: str) -> str:
    return stored(text, x.target.buffer.dtype)
