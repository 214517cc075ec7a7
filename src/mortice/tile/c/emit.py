"""Tile IR, guarded, as one C function.

Needs "guarded". A grid becomes an OpenMP loop over its blocks, tiles become arrays in a thread's memory, parallel loops
become SIMD loops: twice where bounds cannot be proven, once for blocks that lie inside their tensors (which one test
before the loop finds out) and once with a check an access.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mortice.tile.c import regions
from mortice.tile.c.checks import Checks
from mortice.tile.c.expression import Expressions
from mortice.tile.c.kept import Kept, kept
from mortice.tile.c.names import name, storage, stored, value
from mortice.tile.c.sums import Begun, begun
from mortice.tile.c.vectors import lanes
from mortice.tile.c.writer import Writer
from mortice.tile.diagnostics import UnsupportedError
from mortice.tile.dtypes import bf16, index
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.passes.ranges import affine, dimensions

ALIGNMENT = 64
SMALL = 4096  # bytes of a private array that may lie on a thread's stack


@dataclass(frozen=True)
class _Inside:
    """conditions: tests without the innermost variable. limits: what it must stay below. proven: accesses, by buffer, axis
    and index, that are in bounds then. ends: one of these the innermost variable must stay below for anything to be
    stored; empty if that is not known."""

    conditions: list[str]
    limits: list[str]
    ends: list[str]
    proven: set[tuple[str, int, e.Expr]]


class Emitter:
    def __init__(self, function: s.Function) -> None:
        self.function = function
        self.ranges = dimensions(function)
        self.out = Writer()
        self.c = Expressions(self.ranges)
        self.checks = Checks(self.c)
        self.offsets: dict[str, int] = {}
        self.kept: dict[str, Kept] = {}
        self.begun: list[Begun] = []
        self.scratch = self.scratch_end = 0  # offsets of the products' scratch
        self.in_parallel = False
        self.in_launch = False

    def source(self) -> str:
        """The whole file. ABI: the parameters in order; dimensions and strides; how many threads."""
        out = self.out
        out.line('#include "gemm.h"')
        params = ", ".join(_parameter(param) for param in self.function.params)
        comma = ", " if params else ""
        out.line(f"int kernel({params}{comma}const int64_t *whole, int threads) {{", open=True)
        for i, var in enumerate(whole_names(self.function)):
            out.line(f"const int64_t {name(var)} = whole[{i}];")
        for tensor in self.function.tensors:
            self.strides(tensor.buffer)
        out.line("int failed = 0; (void)whole; (void)threads;")
        self.aliases()
        self.block(self.function.body)
        out.line("return failed;")
        out.close()
        return out.text()

    def aliases(self) -> None:
        """A tensor that is written overlaps no other, unless both are one view. Seen for tensors without gaps."""
        tensors = [tensor for tensor in self.function.tensors if tensor.buffer.strides is None]
        for i, one in enumerate(tensors):
            for other in tensors[i + 1 :]:
                if not one.written and not other.written:
                    continue
                written = one if one.written else other
                problem = f"{written.buffer.name} is written and overlaps another argument"
                refusal = self.checks.refusal(
                    self.function.span, self.function.name, problem, "pass tensors that lie apart"
                )
                sides = ", ".join(f"{name(x.buffer.name)}, {self.bytes(x.buffer)}" for x in (one, other))
                self.out.line(f"if (overlap({sides})) {{ {refusal} return failed; }}")

    def bytes(self, buffer: e.Buffer) -> str:
        count: e.Expr = e.const(buffer.dtype.bytes)
        for extent in buffer.shape:
            count = build.binary("mul", extent, count)
        return self.c(count)

    def strides(self, buffer: e.Buffer) -> None:
        if buffer.strides is not None:
            given = [self.c(stride) for stride in buffer.strides]
        else:
            shape: list[e.Expr] = []
            factor: e.Expr = e.const(1)
            for extent in reversed(buffer.shape):
                shape.append(factor)
                factor = build.binary("mul", factor, extent)
            given = [self.c(stride) for stride in reversed(shape)]
        for axis, text in enumerate(given):
            self.out.line(
                f"const int64_t {name(buffer.name)}s{axis} = {text}; (void){name(buffer.name)}s{axis};"
            )

    def block(self, block: s.Block) -> None:
        sums = begun(block)
        self.begun += sums
        for statement in block:
            if any(x.zeros is statement for x in sums):
                continue
            started = [x for x in sums if x.loop is statement]
            for one in started:
                first, stop = self.c(one.loop.start), self.c(one.loop.stop)
                self.out.line(f"const int64_t {one.first} = {first};")
                self.out.line(f"if ({one.first} >= ({stop})) {{", open=True)
                self.statement(one.zeros)
                self.out.close()
            self.statement(statement)

    def statement(self, x: s.Stmt) -> None:
        self.out.mark(x.span)
        tests = self.checks.boxes(x)
        if not tests:
            self.unchecked(x)
            return
        self.out.line(f"if ({' && '.join(test for test, _ in tests)}) {{", open=True)
        self.unchecked(x)
        self.out.close()
        region = tests[0][1]
        problem = f"a box lies outside {list(region.buffer.extents)}"
        self.out.line(
            "else " + self.checks.refusal(region.span, region.buffer.name, problem, "stay within the tile")
        )

    def unchecked(self, x: s.Stmt) -> None:  # noqa: C901 - a table of all statements
        match x:
            case s.Launch():
                self.launch(x)
            case s.For():
                self.loop(x)
            case s.Parallel():
                self.parallel(x)
            case s.If():
                self.out.line(f"if ({self.c(x.condition)}) {{", open=True)
                self.block(x.then)
                self.out.close()
                if x.otherwise:
                    self.out.line("else {", open=True)
                    self.block(x.otherwise)
                    self.out.close()
            case s.While():
                self.out.line(f"while ({self.c(x.condition)}) {{", open=True)
                self.block(x.body)
                self.out.close()
            case s.Let():
                self.ranges.let(x)
                const = "" if x.mutable else "const "
                self.out.line(f"{const}{value(x.var.dtype)} {name(x.var.name)} = {self.c(x.value)};")
            case s.Assign(value=e.Binary(op="min" | "max" as op, left=left, right=right)) if left == x.var:
                kind, sign = value(x.var.dtype), {"min": "<", "max": ">"}[op]
                new, old = f"({kind})({self.c(right)})", name(x.var.name)
                self.out.line(
                    f"{{ const {kind} new__ = {new}; {old} = new__ {sign} {old} ? new__ : {old}; }}"
                )
            case s.Assign():
                self.out.line(f"{name(x.var.name)} = {self.c(x.value)};")
            case s.Alloc():
                self.allocate(x)
            case s.Store():
                guard = self.c.guard(x.buffer, x.indices, x.guards)
                text = self.moved(x) or self.c.store(x.buffer, x.indices, self.c(x.value))
                self.out.line(f"if {guard} {text}" if guard else text)
            case s.Copy() if x.target.buffer.scope.startswith("panels"):
                self.pack(x)
            case s.Copy():
                regions.copy(self.out, self.c, x)
            case s.Unpack():
                regions.unpack(self.out, self.c, x)
            case s.Fill():
                regions.fill(self.out, self.c, x)
            case s.Gemm():
                self.gemm(x)
            case s.Reduce():
                regions.reduce(self.out, self.c, x)
            case s.Scan():
                regions.scan(self.out, self.c, x)
            case s.Atomic():
                self.atomic(x)
            case s.Check() if self.in_launch:  # the host has checked those outside
                refusal = self.checks.refusal(
                    x.span, "assert", f"`{x.message}` does not hold", "mend the kernel or its arguments"
                )
                self.out.line(f"if (!({self.c(x.condition)})) {refusal}")
            case s.Check():
                pass
            case s.Print() | s.Breakpoint():
                word = type(x).__name__.lower()
                problem = "compiled C cannot stop or print"
                raise UnsupportedError(
                    x.span, word, problem, 'run the kernel with .on("interpreter"), or take it out'
                )
            case _:
                raise UnsupportedError(
                    x.span, type(x).__name__, "the C back end has no form of it", "use tile operators"
                )

    def moved(self, x: s.Store) -> str:
        """An element that goes from one buffer to another as it is; empty if it is more than that."""
        load = x.value
        if not isinstance(load, e.Load) or load.buffer.dtype != x.buffer.dtype:
            return ""
        if self.c.guard(load.buffer, load.indices, load.guards):
            return ""
        return f"{self.c.element(x.buffer, x.indices)} = {self.c.element(load.buffer, load.indices)};"

    def launch(self, x: s.Launch) -> None:
        out = self.out
        out.line("{", open=True)
        for i, extent in enumerate(x.extents):
            out.line(f"const int64_t grid{i} = MAX((int64_t)0, (int64_t)({self.c(extent)}));")
        total = " * ".join(f"grid{i}" for i in range(len(x.extents)))
        out.line(f"const int64_t blocks = {total};")
        run = "1" if len(x.extents) < 2 else f"MIN(grid0, (int64_t){x.panel})" if x.panel else "grid0"
        self.kept = kept(x, self.function, size) if run != "1" else {}
        bytes_needed = str(self.plan(x))
        if self.kept:
            out.line(f"const int64_t run = MAX((int64_t)1, {run}); /* blocks in turn that share tiles */")
        for tile in self.kept.values():
            tile.declare(out, self.c)
            bytes_needed += f" + {name(tile.name)}slots__ * {tile.bytes}"
        out.line("#pragma omp parallel num_threads(threads) if (blocks > 1 && threads > 1)")
        out.line("{", open=True)
        out.line(f"char *const memory = thread_memory({bytes_needed});")
        out.line("if (!memory) {", open=True)
        out.line("#pragma omp atomic write")
        out.line("failed = -1;")
        out.close()
        place = str(self.scratch_end)
        for tile in self.kept.values():
            tile.keys(out, place)
            place += f" + {name(tile.name)}slots__ * {tile.bytes}"
        out.line("#pragma omp for schedule(dynamic, 1)")
        out.line("for (int64_t block = 0; block < blocks; block++) {", open=True)
        out.line("if (!memory) continue;")
        self.block_indices(x)
        self.in_launch = True
        with self.ranges.loop(x.vars, x.extents):
            self.block(x.body)
        self.in_launch = False
        out.close()
        if any(isinstance(node, s.Gemm) for node in walk(x.body)):
            out.line("matrix_unit_off();")
        out.close()
        out.close()

    def block_indices(self, x: s.Launch) -> None:
        """The first variable counts fastest; with panels, bands of rows of it."""
        out, names = self.out, [name(var.name) for var in x.vars]
        if x.panel and len(names) > 1:
            out.line(
                f"const int64_t band = block % (grid0 * grid1) / ({x.panel} * grid1), top = band * {x.panel};"
            )
            out.line(
                f"const int64_t high = MIN(grid0 - top, (int64_t){x.panel}), in = block % (grid0 * grid1) - top * grid1;"
            )
            out.line(f"const int64_t {names[0]} = top + in % high, {names[1]} = in / high;")
            if len(names) > 2:
                out.line(f"const int64_t {names[2]} = block / (grid0 * grid1);")
            return
        step = "1"
        for i, var in enumerate(names):
            out.line(f"const int64_t {var} = block / ({step}) % grid{i};")
            step = f"{step} * grid{i}"

    def plan(self, x: s.Launch) -> int:
        """Bytes of a block's tiles, and of the largest scratch any product in it needs."""
        offset, scratch = 0, 0
        for node in walk(x.body):
            if isinstance(node, s.Alloc) and node.buffer.name not in self.kept and not private(node, x):
                self.offsets[node.buffer.name] = offset
                offset += -(-size(node.buffer) // ALIGNMENT) * ALIGNMENT + ALIGNMENT
            if isinstance(node, s.Gemm):
                m, n, k = gemm_sizes(node)
                m, n = (0 if form(r, False) == "PANELS" else size for r, size in ((node.a, m), (node.b, n)))
                padded = -(-n // 32) * 32 * (-(-k // 32) * 32)
                scratch = max(scratch, 4 * (2 * padded + 2 * m * (-(-k // 32) * 32) + 4096))
        self.scratch, self.scratch_end = offset, -(-(offset + scratch + 4096) // 4096) * 4096
        return self.scratch_end

    def pack(self, x: s.Copy) -> None:
        tile = self.kept.get(x.target.buffer.name)
        if tile is None:
            regions.pack(self.out, self.c, x)
            return
        self.out.line("{", open=True)
        tile.choose(self.out, self.c)
        regions.pack(self.out, self.c, x)
        self.out.close()
        self.out.close()

    def allocate(self, x: s.Alloc) -> None:
        kind, buffer = storage(x.buffer.dtype), name(x.buffer.name)
        if x.buffer.name in self.kept:
            self.out.line(f"{kind} *{buffer} = {buffer}ring__;")
            return
        if x.buffer.name in self.offsets:
            offset = self.offsets[x.buffer.name]
            if x.buffer.scope == "panels_there":
                self.out.line(
                    f"bf16 *const {buffer}here__ = (bf16 *)(memory + {offset}), *{buffer} = {buffer}here__;"
                )
                self.out.line(f"int64_t {buffer}pitch__ = 0; (void){buffer}pitch__;")
                return
            self.out.line(f"{kind} *const restrict {buffer} = ({kind} *)(memory + {offset});")
            return
        if size(x.buffer) > SMALL:
            problem = f"a local array of {size(x.buffer)} bytes in a parallel loop"
            raise UnsupportedError(
                x.span, x.buffer.name, problem, f"keep it within {SMALL} bytes, or use tile.fragment"
            )
        count = size(x.buffer) // x.buffer.dtype.bytes
        self.out.line(f"{kind} {buffer}[{count}];")

    def loop(self, x: s.For) -> None:
        if x.kind == "vector":
            self.vector(x)
            return
        var, start, stop, step = name(x.var.name), self.c(x.start), self.c(x.stop), self.c(x.step)
        forward = isinstance(x.step, e.Const) and x.step.value > 0
        if forward:
            head = f"for (int64_t {var} = {start}, end_{var} = {stop}; {var} < end_{var}; {var} += {step}) {{"
        else:
            test = f"({step} > 0 ? {var} < end_{var} : {step} < 0 && {var} > end_{var})"
            refusal = self.checks.refusal(x.span, "range", "its step is 0", "give another step")
            self.out.line(f"if (({step}) == 0) {refusal}")
            head = f"for (int64_t {var} = {start}, end_{var} = {stop}; {test}; {var} += {step}) {{"
        self.out.line(head, open=True)
        if forward:
            with self.ranges.loop((x.var,), (x.stop,), x.start):
                self.block(x.body)
        else:
            self.block(x.body)
        self.out.close()

    def vector(self, x: s.For) -> None:
        """A loop that the compiler may take in any order, but for folds; like a parallel one it is written twice where
        bounds are not proven."""
        var, last = name(x.var.name), build.binary("sub", x.stop, e.const(1))
        known = self.inside(x.body, {x.var.name: (x.start, last)}, x.var.name)

        def written(low: str, high: str) -> None:
            in_lanes = lanes(self.out, self.c, x.body, x.var, low, high)
            self.out.line(f"{{ const int64_t end_{var} = {high};")
            self.out.line(f"#pragma omp simd{_reductions(x)}")
            self.out.line(f"for (int64_t {var} = {low}; {var} < end_{var}; {var}++) {{", open=True)
            self.block(x.body)
            self.out.close()
            self.out.line("}")
            if in_lanes:
                self.out.line("#endif")

        with self.ranges.loop((x.var,), (x.stop,), x.start):
            self.twice(known, self.c(x.start), self.c(x.stop), written)

    def parallel(self, x: s.Parallel) -> None:
        reach: dict[str, tuple[e.Expr, e.Expr]] = {
            var.name: (e.const(0), build.binary("sub", extent, e.const(1)))
            for var, extent in zip(x.vars, x.extents, strict=True)
        }
        known = self.inside(x.body, reach, x.vars[-1].name)
        with self.ranges.loop(x.vars, x.extents):
            self.twice(known, "0", self.c(x.extents[-1]), lambda low, high: self.nest(x, low, high))

    def twice(self, known: "_Inside", low: str, high: str, written: Callable[[str, str], None]) -> None:
        """Where the conditions hold, trusting what they prove as far as the limits reach; the rest with a check an
        access."""
        if not known.proven:
            written(low, high)
            return
        safe = self.out.fresh("safe") if known.limits else high
        if known.limits:
            self.out.line(f"int64_t {safe} = {high};")
            for limit in known.limits:
                self.out.line(f"{safe} = MIN({safe}, (int64_t)({limit}));")
            tests = " && ".join(known.conditions)
            if tests:
                self.out.line(f"if (!({tests})) {safe} = {low};")
            self.out.line(f"if ({safe} > ({low})) {{", open=True)
        else:
            self.out.line(f"if ({' && '.join(known.conditions)}) {{", open=True)
        with self.trusting(known.proven):
            written(low, safe)
        self.out.close()
        if known.limits:
            self.out.line(f"else {safe} = {low};")
            if len(known.ends) == 1:
                high = f"MIN((int64_t)({high}), (int64_t)({known.ends[0]}))"
            self.out.line(f"if ({safe} < {high}) {{", open=True)
            written(safe, high)
        else:
            self.out.line("else {", open=True)
            written(low, high)
        self.out.close()

    def nest(self, x: s.Parallel, low: str, high: str) -> None:
        """low, high: of the last variable."""
        *outer, inner = x.vars
        for var, extent in zip(outer, x.extents, strict=False):
            v = name(var.name)
            self.out.line(f"for (int64_t {v} = 0; {v} < {self.c(extent)}; {v}++) {{", open=True)
        self.in_parallel = True
        vector = vectorises(x)
        in_lanes = vector and lanes(self.out, self.c, x.body, inner, low, high)
        if vector:
            self.out.line("#pragma omp simd")
        v = name(inner.name)
        self.out.line(f"for (int64_t {v} = {low}; {v} < {high}; {v}++) {{", open=True)
        self.block(x.body)
        self.out.close()
        if in_lanes:
            self.out.line("#endif")
        self.in_parallel = False
        for _ in outer:
            self.out.close()

    def inside(self, body: s.Block, reach: dict[str, tuple[e.Expr, e.Expr]], last: str) -> "_Inside":
        """What is to be tested, before a loop, for accesses with an affine index to be in bounds. reach: the first and the
        last value of each of its variables. last: the innermost, which limits may stop earlier."""
        inner = {node.var.name for node in walk(body) if isinstance(node, s.Let | s.For)}
        conditions: dict[str, None] = {}
        limits: dict[str, None] = {}
        proven: set[tuple[str, int, e.Expr]] = set()
        ends: dict[str, None] = {}
        effects = sum(isinstance(node, s.Store | s.Assign | s.Atomic) for node in walk(body))
        for node in walk(body):
            if not isinstance(node, e.Load | s.Store) or node.guards is None:
                continue
            for axis, (at, checked) in enumerate(zip(node.indices, node.guards, strict=True)):
                form = affine(at, reach) if checked else None
                if form is None or any(
                    (isinstance(part, e.Var) and part.name in inner) or isinstance(part, e.Load)
                    for part in walk(at)
                ):
                    continue
                limited = form[0].get(last) == 1
                low = high = form[1]
                for var, factor in form[0].items():
                    first, end = (build.binary("mul", edge, e.const(factor)) for edge in reach[var])
                    first, end = (end, first) if factor < 0 else (first, end)
                    low = build.binary("add", low, first)
                    if not (limited and var == last):
                        high = build.binary("add", high, end)
                lower = self.ranges.of(low)[0]
                if lower is None or lower < 0:
                    conditions[f"({self.c(low)}) >= 0"] = None
                extent = node.buffer.shape[axis]
                if limited:
                    limit = self.c(build.binary("sub", extent, high))
                    limits[limit] = None
                    if isinstance(node, s.Store) and effects == 1:
                        ends[limit] = None
                else:
                    conditions[f"({self.c(high)}) < {self.c(extent)}"] = None
                proven.add((node.buffer.name, axis, at))
        return _Inside(list(conditions), list(limits), list(ends), proven)

    @contextmanager
    def trusting(self, proven: set[tuple[str, int, e.Expr]]) -> Iterator[None]:
        outer = self.c.unguarded
        self.c.unguarded = lambda buffer, axis, at: (buffer.name, axis, at) in proven
        yield
        self.c.unguarded = outer

    def gemm(self, x: s.Gemm) -> None:
        m, n, k = gemm_sizes(x)
        da, db = x.a.buffer.dtype, x.b.buffer.dtype
        kind = str(da) if da == db else f"{da}_{db}"
        a, b, c = (f"{regions.start(self.c, r)}, {regions.pitch(r)}" for r in (x.a, x.b, x.c))
        if x.b.buffer.scope == "panels_there":
            b = f"{name(x.b.buffer.name)}, {name(x.b.buffer.name)}pitch__"
        elif form(x.b, False) == "PANELS" and db == bf16:
            b = f"{name(x.b.buffer.name)}, {-(-k // 32) * 1024}"
        clear = str(int(x.clear))
        for sums in self.begun:
            if sums.product is x:
                clear = f"{name(sums.loop.var.name)} == {sums.first}"
        flags = form(x.a, x.transpose_a), form(x.b, x.transpose_b), clear
        scratch = f"memory + {self.scratch}"
        self.out.line(
            f"gemm_{kind}({a}, {flags[0]}, {b}, {flags[1]}, {c}, {m}, {n}, {k}, {flags[2]}, {scratch});"
        )

    def atomic(self, x: s.Atomic) -> None:
        guard = self.c.guard(x.buffer, x.indices, None)
        place, kind = self.c.element(x.buffer, x.indices), storage(x.buffer.dtype)
        new = self.c(x.value)
        self.out.line(f"if {guard} {{" if guard else "{", open=True)
        plain = x.buffer.dtype.is_integer or x.buffer.dtype.bits >= 32
        if x.op == "add" and plain:
            self.out.line("#pragma omp atomic")
            self.out.line(f"{place} += {stored(new, x.buffer.dtype)};")
        else:
            current = "from_" + str(x.buffer.dtype) + "(old)" if not plain else "old"
            sums = {"add": f"{current} + {new}"}.get(
                x.op, f"{x.op.upper()}({current}, ({value(x.buffer.dtype)})({new}))"
            )
            self.out.line(
                f"{kind} *const at = &{place}; {kind} old, next; __atomic_load(at, &old, __ATOMIC_RELAXED);"
            )
            self.out.line(f"do next = {stored(sums, x.buffer.dtype)};")
            self.out.line(
                "while (!__atomic_compare_exchange(at, &old, &next, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));"
            )
        self.out.close()


def _reductions(loop: s.For) -> str:
    """The clauses of a vector loop's accumulators."""
    signs = {"add": "+", "min": "min", "max": "max", "or": "||", "and": "&&"}
    clauses: dict[str, None] = {}
    for node in walk(loop.body):
        if isinstance(node, s.Assign) and isinstance(node.value, e.Binary):
            clauses[f" reduction({signs[node.value.op]}: {name(node.var.name)})"] = None
    return "".join(clauses)


def whole_names(function: s.Function) -> list[str]:
    """Dimensions and strides, in the order the ABI passes them."""
    names: dict[str, None] = {}
    for tensor in function.tensors:
        for x in (*tensor.buffer.shape, *(tensor.buffer.strides or ())):
            for node in walk(x):
                if isinstance(node, e.Var) and node.dtype == index:
                    names[node.name] = None
    scalars = {param.var.name for param in function.params if isinstance(param, s.Scalar)}
    return [name for name in names if name not in scalars]


def _parameter(param: s.Param) -> str:
    if isinstance(param, s.Scalar):
        return f"const {'float' if param.var.dtype.is_float else 'int64_t'} {name(param.var.name)}"
    const = "" if isinstance(param, s.Tensor) and param.written else "const "
    return f"{const}{storage(param.buffer.dtype)} *{name(param.buffer.name)}"


def size(buffer: e.Buffer) -> int:
    """Bytes of a tile; panels are padded to whole ones."""
    count = 1
    for extent in buffer.extents:
        count *= -(-extent // 32) * 32 if buffer.scope.startswith("panels") else extent
    return count * buffer.dtype.bytes


def form(operand: e.Region, turned: bool) -> str:
    return "PANELS" if operand.buffer.scope.startswith("panels") else "TURNED" if turned else "STRAIGHT"


def private(alloc: s.Alloc, launch: s.Launch) -> bool:
    """Made in a parallel loop: one for each iteration."""
    return any(isinstance(node, s.Parallel) and alloc in tuple(walk(node.body)) for node in walk(launch.body))


def gemm_sizes(x: s.Gemm) -> tuple[int, int, int]:
    m, n = (int(extent.value) for extent in x.c.shape if isinstance(extent, e.Const))
    sides = [int(extent.value) for extent in x.a.shape if isinstance(extent, e.Const)]
    return m, n, sides[0] if x.transpose_a else sides[1]


def vectorises(x: s.Parallel) -> bool:
    """No loops, atomics or private arrays inside: what `omp simd` may promise."""
    return not any(isinstance(node, s.For | s.While | s.Atomic | s.Alloc | s.Check) for node in walk(x.body))
