"""The role that computes, and when it waits: products run on while the statements after them go on, up to the first
that touches what they write, and a slot of a ring is given back once the products that read it are done.

Three schedules of a loop over rings, the first that fits:
- products only (GEMM): each iteration starts its chain and then waits for the one before;
- product, arithmetic, product (attention): the second product of an iteration runs with the first of the next, beside
  the arithmetic (FlashAttention-3, arXiv 2407.08608, section 3.2), two warpgroups taking turns at the matrix unit;
- anything else: statement by statement.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import buffers, transform, walk
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu import elementwise, epilogue, fma, matrix, mma, pipelines, scans, tensors
from mortice.tile.passes.gpu.by_panel import Panels, give_back, start_first, start_second
from mortice.tile.passes.gpu.context import Context, Counter, advance
from mortice.tile.passes.gpu.pipelines import Ahead
from mortice.tile.passes.gpu.rings import Ring, is_load
from mortice.tile.passes.gpu.tiles import SharedTile

TURN_BARRIER = 5  # of warpgroup 0; the next is warpgroup 1's


@dataclass(frozen=True, slots=True)
class Overlapped:
    """A loop body as first product, arithmetic beside the second product, arithmetic after it, second product."""

    first: s.Gemm
    beside: s.Block
    after: s.Block
    second: s.Gemm


@dataclass(slots=True)
class Flying:
    """A product on its way: the registers it adds to and reads, the shared tiles it reads, and what gives back slots or
    panels of rings when it is done. alone: that does not wait for the products after it."""

    sums: str
    operand: str
    tiles: frozenset[str]
    releases: list[Callable[[], None]] = field(default_factory=list)
    alone: bool = False

    @classmethod
    def of(cls, x: s.Gemm, *releases: Callable[[], None], alone: bool = False) -> "Flying":
        held = x.a.buffer.name if x.a.buffer.scope == "fragment" else ""
        tiles = frozenset({x.a.buffer.name, x.b.buffer.name} - {held})
        return cls(x.c.buffer.name, held, tiles, list(releases), alone)

    def meets(self, x: s.Stmt) -> bool:
        """May the statement not go on beside it?"""
        if isinstance(x, s.Gemm):
            return x.c.buffer.name == self.operand or self.sums in (x.a.buffer.name, x.b.buffer.name)
        if is_load(x):
            return False
        names = {buffer.name for buffer in buffers(x)}
        return bool(names & {self.sums, self.operand} or names & self.tiles)


class Workers:
    def __init__(
        self,
        cx: Context,
        rings: list[Ring],
        side_by_side: bool,
        ahead: Sequence[Ahead] = (),
        panels: Mapping[str, Panels] = MappingProxyType({}),
    ) -> None:
        self.cx, self.rings, self.side, self.ahead, self.panels = cx, rings, side_by_side, ahead, panels
        self.flying: list[Flying] = []
        self.landing = False  # copies by all threads are on their way
        self.written = {
            x.buffer.name if isinstance(x, s.Store | s.Atomic) else x.target.buffer.name
            for x in walk(cx.launch.body)
            if isinstance(x, s.Store | s.Atomic | s.Copy)
        }
        self.held: dict[str, e.Expr] = {}  # tile -> slot that its last acquire gave
        self.at: dict[str, Counter] = {}
        self.freed: dict[str, e.Var] = {}
        for ring in rings:
            slot = cx.let(f"{ring.name}_at", a.const(0), mutable=True)
            self.at[ring.name] = Counter(slot, cx.let(f"{ring.name}_phase", a.const(0), mutable=True))
            if ring.stages > 1:
                self.freed[ring.name] = cx.let(f"{ring.name}_freed", a.const(0), mutable=True)

    # Rings

    def acquire(self, ring: Ring) -> None:
        cx, at = self.cx, self.at[ring.name]
        cx.op("barrier_wait", a.box(ring.full, at.slot), at.parity)
        slot = cx.let(f"{ring.name}_slot", at.slot) if ring.stages > 1 else None
        for tile in ring.tiles:
            if slot is not None:
                self.held[tile] = slot
        advance(cx, at, ring.stages)

    def release(self, ring: Ring) -> None:
        cx = self.cx
        slot = self.freed.get(ring.name)
        if self._read_by_threads(ring):
            cx.op("sync_warp")
        with cx.when(a.equal(a.call("lane"), 0)):
            cx.op("barrier_arrive", a.box(ring.empty, slot if slot is not None else a.const(0)))
        if slot is not None:
            cx.emit(s.Assign(slot, a.add(slot, 1)))
            with cx.when(a.equal(slot, ring.stages)):
                cx.emit(s.Assign(slot, a.const(0)))

    def _read_by_threads(self, ring: Ring) -> bool:
        for node in walk(self.cx.launch.body):
            if isinstance(node, s.Copy) and node.source.buffer.name in ring.tiles:
                return True
            if isinstance(node, e.Load) and node.buffer.name in ring.tiles:
                return True
        return False

    def tiles(self) -> dict[str, SharedTile]:
        return self.cx.tiles | {
            name: replace(self.cx.tiles[name], slot=slot) for name, slot in self.held.items()
        }

    # Statements

    def body(self, block: s.Block, loop: s.For | None = None) -> None:
        """In order; rings filled here are given back after the last statement that uses them."""
        here = [ring for ring in self.rings if any(c is x for c in ring.copies for x in block)]
        mine = [ring for ring in here if ring.name not in self.panels]
        last = {
            ring.name: max(i for i, x in enumerate(block) if any(b.name in ring.tiles for b in buffers(x)))
            for ring in mine
        }
        for number, statement in enumerate(block):
            self._await(statement)
            if isinstance(statement, s.Gemm) and self.cx.groups:
                if not any(self._by_panel(ring, statement) for ring in here):
                    self._products(statement)
                    self.flying.append(Flying.of(statement))
            else:
                self.statement(statement)
            for ring in mine:
                if last[ring.name] <= number:
                    last[ring.name] = len(block)
                    reading = [x for x in self.flying if x.tiles & set(ring.tiles)]
                    if reading:
                        reading[-1].releases.append(partial(self.release, ring))
                    else:
                        self.release(ring)
        self._await(None)
        self.land()

    def _await(self, x: s.Stmt | None) -> None:
        """Products in flight are waited for, in order, up to the last that the statement touches (None: all), and what
        they read is given back."""
        due = 0
        for number, product in enumerate(self.flying, 1):
            if x is None or isinstance(x, s.For | s.While | s.If) or product.meets(x):
                due = number
        if not due:
            return
        done, self.flying = self.flying[:due], self.flying[due:]
        for number, product in enumerate(done, 1):
            if product.alone or number == due:
                self.cx.op("wgmma_wait", pending=due - number + len(self.flying))
                for finished in done[:number]:
                    for release in finished.releases:
                        release()
                    finished.releases.clear()

    def _by_panel(self, ring: Ring, x: s.Gemm) -> bool:
        """Starts the product if it is one of those that go through the ring panel by panel."""
        cx, panels = self.cx, self.panels.get(ring.name)
        if panels is None or not (x is panels.first or x is panels.second):
            return False
        free = partial(give_back, cx, ring, panels)
        if x is panels.first:
            start_first(cx, ring, panels, self.tiles(), self.at[ring.name])
            self.flying.append(Flying.of(x, partial(free, (), idle=not panels.overlay, others=True)))
            return True
        for step in start_second(cx, panels, self.tiles()):
            idle = bool(panels.overlay) and step == panels.steps[-1]
            self.flying.append(Flying.of(x, partial(free, step, idle=idle, others=False), alone=True))
        return True

    def land(self) -> None:
        """Copies that all threads have started are waited for, and seen by all."""
        if self.landing:
            self.landing = False
            self.cx.op("cp_async_commit")
            self.cx.op("cp_async_wait", pending=0)
            self.cx.sync()

    def statement(self, x: s.Stmt) -> None:  # noqa: C901 - a table of all statements
        cx = self.cx
        if isinstance(x, s.Let | s.Assign | s.Parallel | s.Copy | s.Store | s.Atomic) and self._reads_own(x):
            cx.sync()
        if is_load(x):
            assert isinstance(x, s.Copy)
            ring = next((r for r in self.rings if any(c is x for c in r.copies)), None)
            if ring is None:
                if not self.landing:
                    cx.sync()
                self.landing = True
                pipelines.load(cx, x, self.tiles()[x.target.buffer.name])
            elif x is ring.copies[-1] and ring.name not in self.panels:
                self.acquire(ring)
            return
        self.land()
        match x:
            case s.Alloc():
                if x.buffer.scope == "fragment":
                    cx.declare(x.buffer)
                elif x.buffer.scope == "local":
                    cx.emit(x)
            case s.Let():
                cx.emit(replace(x, value=self._value(x.value)))
                cx.ranges.let(x)
            case s.Assign():
                cx.emit(replace(x, value=self._value(x.value)))
            case s.Fill():
                elementwise.fill(cx, x)
            case s.Copy():
                self._copy(x)
            case s.Reduce():
                elementwise.reduce(cx, x)
            case s.Parallel() if cx.staging and (added := epilogue.added_tile(cx, x)) is not None:
                epilogue.add_boxes(cx, x, added)
            case s.Parallel():
                with self._tiles_in_place():
                    elementwise.parallel(cx, x)
            case s.Scan():
                scans.scan(cx, x)
            case s.Gemm() if not cx.groups:
                with self._tiles_in_place():
                    mma.multiply(cx, x) if cx.warps else fma.multiply(cx, x)
            case s.Gemm():
                self._products(x)
                cx.op("wgmma_wait", pending=0)
            case s.For():
                self._loop(x)
                for inner in x.body:
                    if isinstance(inner, s.Reduce) and inner.target.buffer.name in cx.deferred:
                        elementwise.finish_sum(cx, inner)
            case s.If():
                with cx.block() as then:
                    self.body(x.then)
                with cx.block() as otherwise:
                    self.body(x.otherwise)
                cx.emit(
                    replace(
                        x, condition=self._value(x.condition), then=tuple(then), otherwise=tuple(otherwise)
                    )
                )
            case s.While():
                with cx.block() as body:
                    self.body(x.body)
                cx.emit(replace(x, condition=self._value(x.condition), body=tuple(body)))
            case s.Store() | s.Atomic() if x.buffer.scope == "global":
                with cx.when(a.equal(cx.thread, 0)):
                    cx.emit(replace(x, value=self._value(x.value)))
            case s.Store() if x.buffer.scope == "fragment":
                there = cx.registers[x.buffer.name]
                value = cx.rounded(self._value(x.value), x.buffer.dtype)
                cx.emit(s.Store(there, (self._everywhere(x),), value, span=x.span))
            case s.Check():
                pass
            case _:
                cx.refuse(
                    x,
                    type(x).__name__.lower(),
                    "there is no form of it for the GPU yet",
                    "use another target",
                )

    def _reads_own(self, x: s.Stmt) -> bool:
        """Does it read a tensor that other threads of this block may have written before?"""
        read = {
            node.buffer.name for node in walk(x) if isinstance(node, e.Load) and node.buffer.scope == "global"
        }
        if isinstance(x, s.Copy) and x.source.buffer.scope == "global":
            read.add(x.source.buffer.name)
        return bool(read & self.written)

    def _value(self, x: e.Expr) -> e.Expr:
        """Elements of fragments that all threads hold become their registers."""

        def change(node: Any) -> Any:
            if isinstance(node, e.Load) and node.buffer.scope == "fragment":
                return build.load(self.cx.registers[node.buffer.name], (self._everywhere(node),))
            return node

        value: e.Expr = transform(x, change)
        return value

    def _everywhere(self, node: e.Load | s.Store) -> e.Expr:
        """The register of one element that every thread holds."""
        cx, buffer = self.cx, node.buffer
        layout = cx.layouts[buffer.name]
        total = a.const(0)
        for dim, index in enumerate(node.indices):
            held = all(d.place == "slot" or d.size == 1 for d in layout.dims[dim])
            if not held or not isinstance(index, e.Const) or buffer.name in cx.packed:
                cx.refuse(node, buffer.name, "one element of a fragment is used outside a parallel loop, and not all "
                          "threads hold it", "use it in a loop over the fragment, or reduce to a row first")  # fmt: skip
            value = int(index.value)
            for d in layout.dims[dim]:
                total = a.add(total, value % d.size * d.stride if d.place == "slot" else 0)
                value //= d.size
        return total

    def _tiles_in_place(self) -> Any:
        return _Swapped(self.cx, self.tiles())

    def _copy(self, x: s.Copy) -> None:
        cx = self.cx
        scopes = (x.source.buffer.scope, x.target.buffer.scope)
        match scopes:
            case ("fragment", "fragment"):
                elementwise.move(cx, x)
            case ("global", "fragment"):
                tensors.load(cx, x)
            case ("fragment", "global"):
                reason = epilogue.why_no_store(cx, x) if cx.staging else "the block has no staging"
                if reason is None:
                    epilogue.store_boxes(cx, x)
                else:
                    if cx.groups:
                        cx.note(x.span, "copy", "stored by threads, not by TMA", reason)
                    tensors.store(cx, x)
            case ("fragment", "shared"):
                if cx.groups and cx.tiles[x.target.buffer.name].width:
                    epilogue.fragment_to_shared(cx, x, x.source.buffer)
                elif cx.groups or not mma.to_shared(cx, x):
                    self._through_loop(x)
            case ("shared", "fragment"):
                self._through_loop(x)
            case ("shared" | "global", "global"):
                self._to_global(x)
            case _:
                cx.refuse(x, "copy", f"{scopes[0]} to {scopes[1]}", "copy by way of a fragment")

    def _through_loop(self, x: s.Copy) -> None:
        """As an elementwise loop over the tile."""
        cx = self.cx
        loops = tuple(cx.var("c") for _ in x.source.kept)
        source = _indices(x.source, loops)
        target = _indices(x.target, loops)
        value = build.load(x.source.buffer, source, span=x.span)
        store = s.Store(x.target.buffer, target, value, span=x.span)
        extents = tuple(x.source.extents[i] for i in x.source.kept)
        with self._tiles_in_place():
            elementwise.parallel(cx, s.Parallel(loops, extents, (store,), span=x.span))

    def _to_global(self, x: s.Copy) -> None:
        cx = self.cx
        loops = tuple(cx.var("c") for _ in x.source.kept)
        store = s.Store(
            x.target.buffer,
            _indices(x.target, loops),
            build.load(x.source.buffer, _indices(x.source, loops), span=x.span),
            (True,) * len(x.target.offsets),
            span=x.span,
        )
        extents = tuple(x.source.extents[i] for i in x.source.kept)
        with self._tiles_in_place():
            elementwise.parallel(cx, s.Parallel(loops, extents, (store,), span=x.span))

    def _products(self, *products: s.Gemm) -> None:
        """One asynchronous group."""
        self.cx.op("wgmma_fence")
        for product in products:
            matrix.issue(self.cx, product, self.tiles(), self.side)
        self.cx.op("wgmma_commit")

    # Loops

    def _loop(self, loop: s.For) -> None:
        cx = self.cx
        ahead = next((x for x in self.ahead if x.loop is loop and x.stages > 1), None)
        if ahead is not None:
            pipelines.run(cx, ahead, lambda loop, version: self._iteration(loop, ahead, version))
            return
        mine = [ring for ring in self.rings if ring.loop is loop]
        work = tuple(x for x in loop.body if not is_load(x) and not isinstance(x, s.Let))
        if mine and work and all(isinstance(x, s.Gemm) and not x.clear for x in work):
            self._products_only(loop, mine, work)
            return
        parts = self._overlapped(loop, mine, work) if mine else None
        if parts is not None:
            self._product_arithmetic_product(loop, parts)
            return
        if mine and any(isinstance(x, s.Gemm) for x in work):
            cx.note(loop.span, "pipelined", "products are waited for in their iteration", "the body is no chain of "
                    "products, nor product, arithmetic, product on tiles of different rings")  # fmt: skip
        with cx.block() as body, cx.ranges.loop((loop.var,), (loop.stop,), loop.start):
            self.body(loop.body, loop)
        kind = "serial" if loop.kind == "pipelined" else loop.kind
        cx.emit(replace(loop, kind=kind, body=tuple(body)))

    def _iteration(self, loop: s.For, ahead: Ahead, version: e.Expr) -> None:
        self.held |= dict.fromkeys(ahead.tiles, version)
        self.body(tuple(x for x in loop.body if not any(x is copy for copy in ahead.copies)), loop)
        for tile in ahead.tiles:
            del self.held[tile]

    def _products_only(self, loop: s.For, mine: list[Ring], work: s.Block) -> None:
        cx = self.cx
        at_once = any(
            ring.stages == 1 for ring in mine
        )  # the next slot is this one: it must be given back first
        with cx.block() as body:
            for x in loop.body:
                if isinstance(x, s.Let):
                    cx.emit(x)
            for ring in mine:
                self.acquire(ring)
            self._products(*(x for x in work if isinstance(x, s.Gemm)))
            if at_once:
                cx.op("wgmma_wait", pending=0)
                for ring in mine:
                    self.release(ring)
        if at_once:
            cx.emit(replace(loop, kind="serial", body=tuple(body)))
            return
        with cx.block() as later, cx.when(build.binary("gt", loop.var, loop.start)):
            cx.op("wgmma_wait", pending=1)
            for ring in mine:
                self.release(ring)
        cx.emit(replace(loop, kind="serial", body=(*body, *later)))
        cx.op("wgmma_wait", pending=0)  # in every path: what follows reads the accumulator
        with cx.when(a.less(loop.start, loop.stop)):
            for ring in mine:
                self.release(ring)

    def _overlapped(self, loop: s.For, mine: list[Ring], work: s.Block) -> Overlapped | None:
        if len(work) < 3 or not isinstance(work[0], s.Gemm) or not isinstance(work[-1], s.Gemm):
            return None
        first, middle, second = work[0], work[1:-1], work[-1]
        if any(isinstance(x, s.Gemm) for x in walk(middle)) or not first.clear or second.clear:
            return None
        ring_of = {tile: ring.name for ring in mine for tile in ring.tiles}
        if second.a.buffer.scope != "fragment" or first.a.buffer.scope == "fragment":
            return None
        if ring_of.get(first.b.buffer.name) == ring_of.get(second.b.buffer.name):
            return None
        if any(b.name in ring_of for x in middle for b in buffers(x)):
            return None
        in_flight = {second.a.buffer.name, second.c.buffer.name}
        split = next(
            (i for i, x in enumerate(middle) if in_flight & {b.name for b in buffers(x)}), len(middle)
        )
        if any(isinstance(v, e.Var) and v.name == loop.var.name for v in walk(second.b)):
            return None
        return Overlapped(first, middle[:split], middle[split:], second)

    def _product_arithmetic_product(self, loop: s.For, parts: Overlapped) -> None:
        cx = self.cx
        first_ring = next(r for r in self.rings if parts.first.b.buffer.name in r.tiles)
        second_ring = next(r for r in self.rings if parts.second.b.buffer.name in r.tiles)
        turns = cx.groups == 2 and not self.side
        group = a.call("warpgroup")
        after_first = a.add(loop.start, 1)
        lets = tuple(x for x in loop.body if isinstance(x, s.Let))

        def arithmetic(block: s.Block, at: e.Expr) -> None:
            for x in block:
                self.statement(_at(x, loop.var, at))

        with cx.when(a.less(loop.start, loop.stop)):
            arithmetic(lets, loop.start)
            self.acquire(first_ring)
            self._products(_at(parts.first, loop.var, loop.start))
            cx.op("wgmma_wait", pending=0)
            self.release(first_ring)
            arithmetic(parts.beside + parts.after, loop.start)
            if turns:
                with cx.when(a.every(a.equal(group, 1), a.less(after_first, loop.stop))):
                    cx.op("arrive", a.const(TURN_BARRIER), a.const(256))
            with cx.block() as body, cx.ranges.loop((loop.var,), (loop.stop,), loop.start):
                arithmetic(lets, loop.var)
                self.acquire(first_ring)
                if turns:
                    cx.op("sync", a.add(group, TURN_BARRIER), a.const(256))
                self._products(parts.first)
                self.acquire(second_ring)
                self._products(parts.second)
                if turns:
                    last = a.less(a.add(loop.var, 1), loop.stop)
                    with cx.when(build.binary("or", a.equal(group, 0), last)):
                        cx.op("arrive", a.sub(TURN_BARRIER + 1, group), a.const(256))
                cx.op("wgmma_wait", pending=1)
                self.release(first_ring)
                arithmetic(parts.beside, loop.var)
                cx.op("wgmma_wait", pending=0)
                self.release(second_ring)
                arithmetic(parts.after, loop.var)
            cx.emit(replace(loop, kind="serial", start=after_first, body=tuple(body)))
            self.acquire(second_ring)
            self._products(parts.second)
            cx.op("wgmma_wait", pending=0)
            self.release(second_ring)


@dataclass
class _Swapped:
    """While open, the context's tiles are those of the slots held."""

    cx: Context
    tiles: dict[str, SharedTile]

    def __enter__(self) -> None:
        self.before, self.cx.tiles = self.cx.tiles, self.tiles

    def __exit__(self, *_: object) -> None:
        self.cx.tiles = self.before


def _at(x: Any, var: e.Var, value: e.Expr) -> Any:
    """The statement with a loop's variable replaced."""
    return transform(x, lambda node: value if isinstance(node, e.Var) and node.name == var.name else node)


def _indices(region: e.Region, loops: tuple[e.Var, ...]) -> tuple[e.Expr, ...]:
    out, dim = [], 0
    for axis, offset in enumerate(region.offsets):
        moved = axis in region.kept
        out.append(a.add(loops[dim], offset) if moved else offset)
        dim += moved
    return tuple(out)
