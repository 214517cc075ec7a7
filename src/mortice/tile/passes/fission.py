"""Code for threads on a machine without them: cut at each synchronisation, every piece a parallel loop over the block's
threads, what a thread keeps from piece to piece in arrays (loop fission, as in MCUDA, LCPC 2008). A shuffle is such a cut
too: all write what they give, then all read.

Gives "no threads": no function or instruction of the thread level is left in a launch. Barriers in shared memory, copy
engines and matrix instructions have no such form and are refused by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mortice.tile.diagnostics import UnsupportedError
from mortice.tile.dtypes import index
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import rebuild, transform, walk, with_body
from mortice.tile.passes.pipeline import Pass
from mortice.tile.passes.tiling.patterns import Names, mentions

THREADS, LANES, GROUP = 128, 32, 128
PLACES = ("thread", "lane", "warp", "warpgroup", "elected")
SHUFFLES = ("shuffle_xor", "shuffle_up", "shuffle")
CUTS = ("sync", "sync_warp")
COLLECTIVE = (s.Copy, s.Fill, s.Gemm, s.Reduce, s.Scan, s.Parallel)


def fission(function: s.Function) -> s.Function:
    body = tuple(_Cut(function, x).launch() if _has_threads(x) else x for x in function.body)
    return with_body(function, body)


def _has_threads(x: s.Stmt) -> bool:
    return isinstance(x, s.Launch) and any(isinstance(node, s.Op | s.Roles | e.Call) for node in walk(x))


@dataclass
class _Cut:
    function: s.Function
    source: Any
    pieces: list[e.Var] = field(default_factory=list)  # the thread variable of each
    arrays: dict[str, e.Buffer] = field(default_factory=dict)  # over threads, that were made

    def __post_init__(self) -> None:
        self.names = Names.of(self.function)
        self.threads = self.source.threads or THREADS
        self.varying = _varying(self.source)
        allocs = [x for x in walk(self.source) if isinstance(x, s.Alloc)]
        self.local = {x.buffer.name: x.buffer for x in allocs if x.buffer.scope == "local"}

    def launch(self) -> s.Launch:
        for node in walk(self.source):
            if isinstance(node, s.Roles) or (isinstance(node, s.Op) and node.name not in CUTS):
                what = node.name if isinstance(node, s.Op) else "role"
                problem = "a CPU has no barriers in shared memory, copy engines or matrix instructions"
                raise UnsupportedError(node.span, what, problem, "run it on a GPU or the simulator")
        changed: s.Launch = replace(self.source, body=self.kept(self.block(self.source.body)))
        return changed

    def block(self, block: s.Block) -> tuple[s.Stmt, ...]:  # noqa: C901 - a table of all statements
        out: list[s.Stmt] = []
        piece: list[s.Stmt] = []

        def close() -> None:
            if piece:
                out.append(self.piece(tuple(piece)))
                piece.clear()

        for statement in block:
            if isinstance(statement, s.Op):
                close()
            elif isinstance(statement, s.Alloc):
                if statement.buffer.name not in self.local:
                    out.append(statement)
            elif _cuts(statement):
                before, changed = self.shuffled(statement)
                for item in before:
                    piece.append(item)
                    close()
                if isinstance(changed, s.For | s.If | s.While):
                    close()
                    out.append(self.structure(changed))
                else:
                    piece.append(changed)
            elif isinstance(statement, COLLECTIVE):
                close()
                out.append(statement)
            elif isinstance(statement, s.Let) and statement.var.name not in self.varying:
                if any(isinstance(node, e.Load) for node in walk(statement.value)):
                    close()
                out.append(statement)
            elif isinstance(statement, s.Assign) and statement.var.name not in self.varying:
                close()
                out.append(statement)
            elif isinstance(statement, s.For | s.If | s.While) and _collective_inside(statement):
                close()
                out.append(self.structure(statement))
            else:
                piece.append(statement)
        close()
        return tuple(out)

    def structure(self, x: s.For | s.If | s.While) -> s.Stmt:
        """With cuts inside: all threads must go the same way."""
        heads = (x.start, x.stop, x.step) if isinstance(x, s.For) else (x.condition,)
        if any(self.varies(head) for head in heads):
            word = type(x).__name__.lower()
            problem = "threads go different ways here, and there is a synchronisation inside"
            raise UnsupportedError(
                x.span,
                word,
                problem,
                "take the synchronisation out of it, or make its condition the same for all",
            )
        if isinstance(x, s.If):
            return replace(x, then=self.block(x.then), otherwise=self.block(x.otherwise))
        return replace(x, body=self.block(x.body))

    def varies(self, x: e.Expr) -> bool:
        return _varies(x, self.varying)

    def shuffled(self, x: s.Stmt) -> tuple[list[s.Stmt], s.Stmt]:
        """What gives away, and the statement that takes. Of a loop or condition only its head."""
        before: list[s.Stmt] = []

        def change(node: Any) -> Any:
            if not (isinstance(node, e.Call) and node.name in SHUFFLES):
                return node
            value, by = node.args
            box = self.array(node.dtype, "given")
            thread, lane = e.Call(index, "thread", ()), e.Call(index, "lane", ())
            before.append(s.Store(box, (thread,), value, span=node.span))
            first = build.binary("sub", thread, lane)
            by = build.cast(by, index)
            if node.name == "shuffle_xor":
                other = build.binary("xor", lane, by)
            elif node.name == "shuffle_up":
                low = build.binary("ge", lane, by)
                other = build.select(low, build.binary("sub", lane, by), lane)
            else:
                other = build.binary("mod", by, e.const(LANES))
            return build.load(box, (build.binary("add", first, other),), node.span)

        if isinstance(x, s.For | s.If | s.While):
            heads = {
                key: transform(getattr(x, key), change)
                for key in ("start", "stop", "condition")
                if hasattr(x, key)
            }
            return before, replace(x, **heads)
        return before, transform(x, change)

    def array(self, dtype: Any, wish: str, shape: tuple[int, ...] = ()) -> e.Buffer:
        extents = tuple(e.const(n) for n in (self.threads, *shape))
        buffer = e.Buffer(self.names.name(wish), dtype, extents, "fragment")
        self.arrays[buffer.name] = buffer
        return buffer

    def piece(self, body: tuple[s.Stmt, ...]) -> s.Parallel:
        t = self.names.var("thread")
        self.pieces.append(t)

        def change(node: Any) -> Any:
            if isinstance(node, e.Call):
                return _place(node, t)
            return node

        changed = tuple(transform(x, change) for x in body)
        return s.Parallel((t,), (e.const(self.threads),), changed, span=body[0].span)

    def kept(self, body: tuple[s.Stmt, ...]) -> tuple[s.Stmt, ...]:
        """Names of one piece that others use, and all local arrays, as arrays over the threads."""
        mine = {var.name for var in self.pieces}
        loops = [x for x in walk(body) if isinstance(x, s.Parallel) and x.vars[0].name in mine]
        made: dict[str, tuple[e.Var, s.Parallel]] = {}
        for loop in loops:
            for node in walk(loop.body):
                if isinstance(node, s.Let):
                    made[node.var.name] = (node.var, loop)
        shared: dict[str, e.Buffer] = {}
        for name, (var, home) in made.items():
            if any(mentions(loop.body, {name}) for loop in loops if loop is not home):
                shared[name] = self.array(var.dtype, name)
        for name, buffer in self.local.items():
            shared[name] = self.array(buffer.dtype, name, buffer.extents)

        def outer(x: Any) -> Any:
            if isinstance(x, s.Parallel) and x.vars[0].name in mine:
                return replace(x, body=tuple(_Kept(shared, x.vars[0]).statement(y) for y in x.body))
            return rebuild(x, outer) if isinstance(x, s.For | s.If | s.While) else x

        allocs = tuple(s.Alloc(buffer, span=self.source.span) for buffer in self.arrays.values())
        return (*allocs, *(outer(x) for x in body))


@dataclass
class _Kept:
    """Rewrites one piece: names and local arrays as elements, the thread's own, of arrays over threads."""

    arrays: dict[str, e.Buffer]
    thread: e.Var

    def value(self, node: Any) -> Any:
        match node:
            case e.Var() if node.name in self.arrays:
                return build.load(self.arrays[node.name], (self.thread,))
            case e.Load() if node.buffer.name in self.arrays:
                return build.load(self.arrays[node.buffer.name], (self.thread, *node.indices), node.span)
            case s.Store() if node.buffer.name in self.arrays:
                return replace(
                    node, buffer=self.arrays[node.buffer.name], indices=(self.thread, *node.indices)
                )
        return node

    def statement(self, x: Any) -> Any:
        """The variable on the left of a name or an assignment is no value."""
        match x:
            case s.Let() | s.Assign():
                new = transform(x.value, self.value)
                if x.var.name in self.arrays:
                    return s.Store(self.arrays[x.var.name], (self.thread,), new, span=x.span)
                return replace(x, value=new)
            case s.Store() | s.Atomic():
                return transform(x, self.value)
            case s.Stmt():
                return rebuild(x, self.statement)
        return transform(x, self.value)


def _cuts(x: s.Stmt) -> bool:
    """A synchronisation or a shuffle inside."""
    return any(isinstance(n, s.Op) or (isinstance(n, e.Call) and n.name in SHUFFLES) for n in walk(x))


def _collective_inside(x: s.Stmt) -> bool:
    return any(isinstance(node, COLLECTIVE) for node in walk(x))


def _varying(launch: s.Launch) -> set[str]:
    """Variables that may differ between threads."""
    found: set[str] = set()
    while True:
        before = len(found)
        for name, value, controlled in _definitions(launch.body, ()):
            if _varies(value, found) or any(_varies(test, found) for test in controlled):
                found.add(name)
        if len(found) == before:
            return found


def _definitions(
    block: s.Block, controlled: tuple[e.Expr, ...]
) -> Iterator[tuple[str, e.Expr, tuple[e.Expr, ...]]]:
    """Each definition: the name, the value, and on what it depends that it happens."""
    for x in block:
        match x:
            case s.Let():
                yield x.var.name, x.value, ()
            case s.Assign():
                yield x.var.name, x.value, controlled
            case s.For():
                ends = (x.start, x.stop, x.step)
                for end in ends:
                    yield x.var.name, end, ()
                yield from _definitions(x.body, (*controlled, *ends))
            case s.While():
                yield from _definitions(x.body, (*controlled, x.condition))
            case s.If():
                yield from _definitions(x.then, (*controlled, x.condition))
                yield from _definitions(x.otherwise, (*controlled, x.condition))


def _varies(x: e.Expr, varying: set[str]) -> bool:
    for node in walk(x):
        if isinstance(node, e.Call) and node.name in (*PLACES, *SHUFFLES):
            return True
        if isinstance(node, e.Var) and node.name in varying:
            return True
        if isinstance(node, e.Load) and node.buffer.scope == "local":
            return True
    return False


def _place(x: e.Call, t: e.Var) -> e.Expr:
    lane = build.binary("mod", t, e.const(LANES))
    match x.name:
        case "thread":
            return build.cast(t, x.dtype)
        case "lane":
            return build.cast(lane, x.dtype)
        case "warp":
            return build.cast(build.binary("floordiv", t, e.const(LANES)), x.dtype)
        case "warpgroup":
            return build.cast(build.binary("floordiv", t, e.const(GROUP)), x.dtype)
        case "elected":
            return build.binary("eq", lane, e.const(0))
        case "cluster_rank":
            return e.Const(x.dtype, 0)
        case "exp2_fast":
            return build.math_call("exp2", x.args[0], x.span)
        case "fma":
            a, b, c = x.args
            return build.binary("add", build.binary("mul", a, b, x.span), c, x.span)
    problem = "a CPU has no such function"
    raise UnsupportedError(x.span, x.name, problem, "run it on a GPU or the simulator")


def check(function: s.Function) -> None:
    for node in walk(function.body):
        assert not isinstance(node, s.Op | s.Roles), f"{node.span}: {type(node).__name__} is left"
        assert not isinstance(node, e.Call), f"{node.span}: {node.name} is left"


FISSION = Pass("fission", fission, check, gives=frozenset({"no threads"}))
