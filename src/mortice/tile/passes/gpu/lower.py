"""A function of tile operators as one of the thread level for a GPU.

Needs "guarded". Gives "thread" (checked by passes/thread_level). On Hopper a launch with products becomes a producer and
one, two or three computing warpgroups around rings of shared tiles; one without, or with a product that wgmma does not
take, and any launch on an older card, becomes plain code for all threads, its products made by `mma` or else by threads.
"""

from dataclasses import dataclass, replace

from mortice.tile.diagnostics import UnsupportedError
from mortice.tile.dtypes import u8
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.passes import run, thread_level
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu import epilogue, fma, mma, scans
from mortice.tile.passes.gpu.by_panel import Panels, find_panels, overlay
from mortice.tile.passes.gpu.cards import SM_90A, Card, check_instructions
from mortice.tile.passes.gpu.context import Context, Note
from mortice.tile.passes.gpu.inference import infer
from mortice.tile.passes.gpu.matrix import why_no_wgmma
from mortice.tile.passes.gpu.pipelines import Ahead, loops_ahead
from mortice.tile.passes.gpu.rings import Producer, Ring, find_rings, why_no_tma, with_stages
from mortice.tile.passes.gpu.sums import deferred_sums
from mortice.tile.passes.gpu.tiles import SharedTile, swizzle_for
from mortice.tile.passes.gpu.workers import Workers
from mortice.tile.passes.guards import GUARDS
from mortice.tile.passes.pipeline import Pass
from mortice.tile.passes.ranges import dimensions

HALF_BYTES = 115712  # of a block of which a multiprocessor holds two
REGISTERS = {
    1: (40, 216),
    2: (40, 232),
    3: (32, 160),
}  # producer, each worker, by number of computing warpgroups
PLAIN_THREADS = 128


@dataclass(frozen=True, slots=True)
class Choices:
    """What may be decided otherwise. persistent: blocks walk over several tiles (None: where that pays)."""

    persistent: bool | None = None
    aligned: frozenset[str] = frozenset()
    card: Card = SM_90A


DEFAULT = Choices()


def lower(function: s.Function, choices: Choices = DEFAULT) -> tuple[s.Function, tuple[Note, ...]]:
    """Raises UnsupportedError with the line that has no form on this card. choices.aligned: results whose base and
    strides are multiples of 16 bytes."""
    notes: list[Note] = []
    maps: list[s.TensorMap] = []

    def work(tile_level: s.Function) -> s.Function:
        body: list[s.Stmt] = []
        for statement in tile_level.body:
            if isinstance(statement, s.Launch) and not _written_for_threads(statement):
                lowering = _Lowering(tile_level, statement, notes, choices)
                body.append(lowering.launch())
                maps.extend(lowering.cx.maps.values())
            else:
                check_instructions(statement, choices.card) if isinstance(statement, s.Launch) else None
                body.append(statement)
        return replace(tile_level, params=(*tile_level.params, *maps), body=tuple(body))

    step = Pass("lower", work, thread_level.check, frozenset({"guarded"}), frozenset({"thread"}))
    return run(function, (GUARDS, step)), tuple(notes)


def _written_for_threads(launch: s.Launch) -> bool:
    return any(isinstance(x, s.Roles | s.Op) for x in walk(launch))


class _Lowering:
    def __init__(self, function: s.Function, launch: s.Launch, notes: list[Note], choices: Choices) -> None:
        self.function, self.choices = function, choices
        if launch.cluster > 1:
            problem = f"cluster={launch.cluster}: blocks of tile operators share nothing"
            remedy = "drop it, or write the kernel for threads (level 3)"
            raise UnsupportedError(launch.span, "grid", f"{choices.card.name}: {problem}", remedy)
        gemms = [x for x in walk(launch) if isinstance(x, s.Gemm)]
        _only_fragments(launch, choices.card)
        unit = _unit(gemms, choices.card, launch.threads)
        self.products, gemms = gemms, gemms if unit.name == "wgmma" else []
        self.by_threads = unit.name == "fma"
        self.groups, self.side = _warpgroups(gemms)
        threads = 128 * self.groups if gemms else unit.threads or launch.threads or PLAIN_THREADS
        layouts = infer(launch, threads, self.groups, self.side, unit.warps)
        ranges = dimensions(function)
        self.cx = Context(
            function, launch, threads, self.groups, layouts, {}, ranges, notes, choices.card, unit.warps
        )
        self.cx.aligned = choices.aligned
        self.cx.names = _names(function)
        for gemm, reason in unit.notes:
            how = (
                f"by mma, {unit.warps[0]} x {unit.warps[1]} warps"
                if unit.warps
                else "by threads, not by the matrix unit"
            )
            self.cx.note(gemm.span, "gemm", f"multiplied {how}", reason)
        self.cx.deferred = deferred_sums(launch.body) if self.side else frozenset()
        self.cx.sums = frozenset(x.c.buffer.name for x in gemms)
        held = gemms if self.groups else self.products if unit.warps else []
        self.cx.packed = frozenset(x.a.buffer.name for x in held if x.a.buffer.scope == "fragment")
        self.rings = find_rings(launch.body) if gemms else []
        self.panels: dict[str, Panels] = {}  # by ring
        self.ahead: list[Ahead] = []
        if not gemms:
            written = {x.buffer.name for x in walk(launch) if isinstance(x, s.Store | s.Atomic)}
            written |= {x.target.buffer.name for x in walk(launch) if isinstance(x, s.Copy)}
            self.ahead = loops_ahead(
                launch,
                written,
                lambda loop, why: self.cx.note(loop.span, "pipelined", "a copy does not run ahead", why),
            )
        self.persistent = False  # until the tiles have their places

    def launch(self) -> s.Launch:
        """The whole launch at the thread level."""
        cx = self.cx
        self._place_tiles()
        self.persistent = self.groups > 0 and self._persistent()
        launch = cx.launch
        total: e.Expr = e.const(1)
        for extent in launch.extents:
            total = a.mul(total, extent)
        block = cx.var("block")
        with cx.ranges.loop(launch.vars, launch.extents):
            if not self.groups:
                body = self._plain(block)
            else:
                body = self._roles(block, total)
        extents: tuple[e.Expr, ...] = (total,)
        if self.persistent:
            extents = (build.binary("min", total, a.call("num_multiprocessors")),)
        threads = cx.threads + (128 if self.groups else 0)
        head = [s.Alloc(cx.memory, at=0)] if cx.memory.extents[0] else []
        # Blocks may start while the kernel before still runs; what touches tensors comes after its end.
        start = list(self._barriers(threads))
        if cx.card.hopper:
            start += [a.op("wait_dependencies"), a.op("launch_dependents")]
        return s.Launch((block,), extents, (*head, *start, *body), threads, span=launch.span)

    # Where tiles lie

    def _place_tiles(self) -> None:
        cx = self.cx
        for node in walk(cx.launch):
            if isinstance(node, s.Alloc) and node.buffer.scope == "shared":
                extents = node.buffer.extents
                rows, columns = (
                    (1, extents[0]) if len(extents) == 1 else (_product(extents[:-1]), extents[-1])
                )
                width = (
                    swizzle_for(columns, rows, node.buffer.dtype)
                    if self.products and len(extents) == 2
                    else 0
                )
                cx.tiles[node.buffer.name] = SharedTile(
                    node.buffer.name, rows, columns, node.buffer.dtype, width, outer=extents[:-1]
                )
        for gemm in self.products if self.by_threads else ():
            held = gemm.a.buffer
            if held.scope == "fragment":
                rows, columns = held.extents
                width = swizzle_for(columns, rows, held.dtype)
                cx.tiles[fma.staged(held)] = SharedTile(fma.staged(held), rows, columns, held.dtype, width)
        self._fit()
        if self._find_panels():
            self._plan()
        for ring in self.rings:
            self._how_filled(ring)

    def _fit(self) -> None:
        """Stages are cut, and tiles laid in idle panels, until all fit; each cut is noted."""
        cx = self.cx
        room, wanted = cx.card.shared_bytes, [x.stages for x in self._staged()]
        while (used := self._plan()) > room:
            big = max((x for x in self._staged() if x.stages > 1), key=self._ring_bytes, default=None)
            if big is None and self._find_panels():
                continue
            if big is None:
                problem = f"its tiles need {used} bytes of shared memory, a block has {room}"
                cx.refuse(cx.launch, "grid", problem, "use smaller tiles")
            if isinstance(big, Ring):
                self.rings[self.rings.index(big)] = with_stages(big, big.stages - 1)
            else:
                self.ahead[self.ahead.index(big)] = replace(big, stages=big.stages - 1)
        for made, stages in zip(self._staged(), wanted, strict=True):
            if made.stages < stages:
                reason = f"{stages} would not fit {room} bytes of shared memory"
                span = made.loop.span if made.loop else cx.launch.span
                cx.note(span, "pipelined", f"{made.stages} stages of {', '.join(made.tiles)}", reason)

    def _find_panels(self) -> bool:
        """Rings that go panel by panel, if any was not found before, and what may lie in their idle panels."""
        cx, found = self.cx, len(self.panels)
        for number, ring in enumerate(self.rings):
            if ring.name in self.panels or not all(
                why_no_tma(cx, copy, cx.tiles[copy.target.buffer.name]) is None for copy in ring.copies
            ):
                continue
            panels = find_panels(ring, cx.tiles[ring.tiles[0]], self.groups, self.side)
            if panels is not None:
                panels.check()
                panels = replace(panels, overlay=overlay(ring, panels, cx.tiles, cx.launch))
                self.panels[ring.name] = panels
                self.rings[number] = with_stages(ring, 1, panels.count)
        return len(self.panels) > found

    def _staged(self) -> list[Ring | Ahead]:
        return [*self.rings, *self.ahead]

    def _plan(self) -> int:
        """Gives every tile its place; the bytes needed."""
        cx, at = self.cx, 0
        staged = {tile: x for x in self._staged() for tile in x.tiles}
        overlaid = {x.overlay: x for x in self.panels.values() if x.overlay}
        for name, tile in cx.tiles.items():
            if name not in overlaid:
                cx.tiles[name] = replace(tile, base=at)
                at += tile.bytes * (staged[name].stages if name in staged else 1)
        for name, panels in overlaid.items():
            below = cx.tiles[panels.first.b.buffer.name]
            cx.tiles[name] = replace(cx.tiles[name], base=below.base + panels.used * below.panel_bytes)
        leaving = any(
            isinstance(x, s.Copy)
            and x.source.buffer.scope == "fragment"
            and x.target.buffer.scope == "global"
            and self.groups
            and epilogue.why_no_store(cx, x) is None
            for x in walk(cx.launch)
        )
        leaving |= any(
            isinstance(x, s.Parallel) and epilogue.added_tile(cx, x) is not None for x in walk(cx.launch)
        )
        if leaving:
            cx.staging = at
            at += self.groups * epilogue.BOXES * epilogue.BOX_BYTES
        exchanged = [
            cx.layouts[x.target.buffer.name].slots
            for x in walk(cx.launch)
            if isinstance(x, s.Reduce)
            and any(d >= 32 for d in cx.layouts[x.source.buffer.name].lanes(x.axis))
        ]
        exchanged += [
            1
            for x in walk(cx.launch)
            if isinstance(x, s.Scan) and scans.crosses_warps(cx.layouts[x.source.buffer.name], x.axis)
        ]
        if exchanged:
            cx.scratch = at
            at += 4 * cx.threads * max(exchanged)
        self.barriers_at = -(-at // 16) * 16
        cx.memory = e.Buffer("memory", u8, (a.const(self.barriers_at),), "shared")
        self.shared_end = self.barriers_at + 16 * sum(ring.full.extents[0] for ring in self.rings)
        return self.shared_end

    def _ring_bytes(self, ring: Ring | Ahead) -> int:
        return sum(self.cx.tiles[name].bytes for name in ring.tiles)

    def _how_filled(self, ring: Ring) -> None:
        cx = self.cx
        ring.by_engine, ring.by_threads, ring.bytes = False, False, 0
        for copy in ring.copies:
            tile = cx.tiles[copy.target.buffer.name]
            reason = why_no_tma(cx, copy, tile)
            if reason is None:
                ring.by_engine = True
                kept = (copy.target.extents[i] for i in copy.target.kept)
                ring.bytes += _product(tuple(int(x.value) for x in kept)) * tile.dtype.bytes  # type: ignore[attr-defined]
            elif copy.prefer == "tma":
                cx.refuse(copy, "copy", reason, "drop prefer, or mend that")
            else:
                ring.by_threads = True
                cx.note(copy.span, "copy", "loaded by threads, not by TMA", reason)

    # What runs

    def _plain(self, block: e.Var) -> list[s.Stmt]:
        cx = self.cx
        with cx.block() as body:
            self._coordinates(block)
            cx.thread = cx.let("t", a.call("thread"))
            Workers(cx, [], False, self.ahead).body(cx.launch.body)
        return body

    def _roles(self, block: e.Var, total: e.Expr) -> list[s.Stmt]:
        cx = self.cx
        few, many = REGISTERS[self.groups] if self.groups > 1 or self._halves() else (0, 0)
        one = not any(ring.by_threads for ring in self.rings)
        if not one and few:
            few, many = {1: (72, 184), 2: (56, 224), 3: (40, 152)}[self.groups]
        with cx.block() as load:
            thread = cx.let("p", a.call("thread"))
            alone = a.every(a.equal(a.call("warp"), 0), a.call("elected")) if one else e.TRUE
            with cx.when(alone):
                orders = {name: panels.order for name, panels in self.panels.items()}
                producer = Producer(cx, self.rings, one, thread, orders)
                with self._tiles_of(block, total):
                    producer.body(cx.launch.body)
        with cx.block() as compute:
            cx.thread = cx.let("t", a.call("thread"))
            workers = Workers(cx, self.rings, self.side, panels=self.panels)
            with self._tiles_of(block, total):
                workers.body(cx.launch.body)
            if cx.staging:
                epilogue.finish(cx)
        roles = (
            s.Role("load", 4, few, tuple(load)),
            s.Role("compute", 4 * self.groups, many, tuple(compute)),
        )
        return [s.Roles(roles)]

    def _barriers(self, threads: int) -> list[s.Stmt]:
        cx, at = self.cx, self.barriers_at
        if not self.rings:
            return []
        allocs: list[s.Stmt] = []
        with cx.block() as init:
            for ring in self.rings:
                for barrier, count in ((ring.full, ring.arrivals), (ring.empty, 4 * self.groups)):
                    allocs.append(s.Alloc(barrier, at=at, count=count))
                    at += 8 * barrier.extents[0]
                    for slot in range(barrier.extents[0]):
                        cx.op("barrier_init", a.box(barrier, slot))
            cx.op("barrier_init_fence")
            for tensor_map in cx.maps.values():
                cx.op("tma_prefetch", a.box(tensor_map.buffer, 0))
        first = s.If(a.equal(a.call("thread"), 0), tuple(init))
        return [*allocs, first, a.op("sync", a.const(0), a.const(threads))]

    # Tiles of the grid

    def _persistent(self) -> bool:
        """Blocks walk over tiles where each costs the same and the producer can run ahead into the next; a tile that
        is loaded once for all of a loop (the queries) would have to be given back first. Small blocks do not: several
        share a multiprocessor, and each load of one stands beside another's."""
        if self.choices.persistent is not None:
            return self.choices.persistent
        if self._halves():
            return False
        if any(ring.loop is None for ring in self.rings):
            return False
        names = {var.name for var in self.cx.launch.vars}
        hanging = _depending(self.cx.launch.body, names)
        return all(
            not any((isinstance(v, e.Var) and v.name in hanging) or isinstance(v, e.Load) for v in walk(x))
            for ring in self.rings
            if ring.loop is not None
            for x in (ring.loop.start, ring.loop.stop)
        )

    def _halves(self) -> bool:
        """Does a multiprocessor hold two of these blocks? Then so few registers must do for each."""
        return self.groups == 1 and self.shared_end <= HALF_BYTES

    def _tiles_of(self, block: e.Var, total: e.Expr):  # type: ignore[no-untyped-def]
        return _Tiles(self, block, total)

    def _coordinates(self, number: e.Expr) -> None:
        """The grid's variables from a block's number: panels of rows walked together, or the first fastest. Where a
        loop's end hangs on the first variable its blocks run from the last, the heaviest first."""
        cx = self.cx
        launch = cx.launch
        if launch.panel and len(launch.vars) == 2:
            rows, columns = launch.extents
            m, n = launch.vars
            in_band = a.mul(columns, launch.panel)
            band = cx.let("band", build.binary("floordiv", number, in_band))
            top = cx.let("top", a.mul(band, launch.panel))
            high = cx.let("high", build.binary("min", a.sub(rows, top), a.const(launch.panel)))
            rest = cx.let("rest", a.sub(number, a.mul(band, in_band)))
            cx.emit(s.Let(m, a.add(top, a.mod(rest, high))), s.Let(n, build.binary("floordiv", rest, high)))
            return
        left = number
        for i, (var, extent) in enumerate(zip(launch.vars, launch.extents, strict=True)):
            last = i == len(launch.vars) - 1
            value = left if last else a.mod(left, extent)
            if i == 0 and self._heavier_later():
                value = a.sub(a.sub(extent, 1), value)
            cx.emit(s.Let(var, value))
            if not last:
                left = cx.let("left", build.binary("floordiv", left, extent))

    def _heavier_later(self) -> bool:
        hanging = _depending(self.cx.launch.body, {self.cx.launch.vars[0].name})
        return any(
            isinstance(v, e.Var) and v.name in hanging
            for ring in self.rings
            if ring.loop is not None
            for v in walk(ring.loop.stop)
        )


class _Tiles:
    """Around a role's work: once for its block, or for every tile that falls to the block."""

    def __init__(self, lowering: _Lowering, block: e.Var, total: e.Expr) -> None:
        self.lowering, self.number, self.total = lowering, block, total

    def __enter__(self) -> None:
        cx = self.lowering.cx
        self.body: list[s.Stmt] = []
        cx.blocks.append(self.body)
        self.var = cx.var("tile") if self.lowering.persistent else self.number
        self.lowering._coordinates(self.var)

    def __exit__(self, *_: object) -> None:
        cx = self.lowering.cx
        cx.blocks.pop()
        if self.lowering.persistent:
            step = a.call("num_blocks")
            cx.emit(s.For(self.var, self.number, self.total, step, tuple(self.body), "serial"))
        else:
            cx.emit(*self.body)


@dataclass(frozen=True, slots=True)
class _Unit:
    """What multiplies: wgmma; mma with so many warps below and beside one another; threads. notes: why not better."""

    name: str
    warps: tuple[int, int] | None = None
    threads: int | None = None
    notes: tuple[tuple[s.Gemm, str], ...] = ()


def _unit(gemms: list[s.Gemm], card: Card, threads: int | None) -> _Unit:
    """The same for all products of a launch."""
    no_wgmma = [(x, why) for x in gemms if (why := why_no_wgmma(x) if card.hopper else "") is not None]
    if not no_wgmma:
        return _Unit("wgmma" if gemms else "")
    no_mma = [(x, why) for x in gemms if (why := mma.why_no_mma(x, card)) is not None]
    warps = mma.arranged(gemms, threads) if not no_mma else None
    if warps is not None:
        found = tuple(no_wgmma) if card.hopper else ()
        return _Unit("mma", warps, 32 * warps[0] * warps[1], found)
    if not no_mma:
        no_mma = [(gemms[0], "no number of warps shares out its results by 16 rows and 8 columns")]
    return _Unit("fma", None, threads or fma.THREADS, tuple(no_mma))


def _warpgroups(gemms: list[s.Gemm]) -> tuple[int, bool]:
    """How many compute, and whether they share rows and split columns."""
    if not gemms:
        return 0, False
    heights = {x.c.buffer.extents[0] for x in gemms}
    columns = max(x.c.buffer.extents[1] for x in gemms)
    # Results of 64 rows beside ones of 128 are shared out by columns.
    low = {x.c.buffer.extents[1] for x in gemms if x.c.buffer.extents[0] == 64}
    if (
        all(rows % 128 == 0 or rows == 64 for rows in heights)
        and max(heights) > 64
        and all(n % 16 == 0 for n in low)
    ):
        return 2, False
    if heights == {192}:
        return 3, False
    return (2, True) if heights == {64} and columns > 256 else (1, False)


def _only_fragments(launch: s.Launch, card: Card) -> None:
    """Raises UnsupportedError at a fold of what does not lie in registers."""
    for x in walk(launch):
        if isinstance(x, s.Reduce | s.Scan):
            for region in (x.source, x.target):
                if region.buffer.scope != "fragment":
                    problem = f"{card.name}: {region.buffer.name} is a {region.buffer.scope} tile"
                    name = "reduce" if isinstance(x, s.Reduce) else "scan"
                    raise UnsupportedError(x.span, name, problem, "copy it to a fragment first")


def _depending(body: s.Block, names: set[str]) -> set[str]:
    """Names whose values hang on the given ones, by way of scalars."""
    hanging = set(names)
    for node in walk(body):
        if isinstance(node, s.Let | s.Assign) and any(
            isinstance(v, e.Var) and v.name in hanging for v in walk(node.value)
        ):
            hanging.add(node.var.name)
    return hanging


def _names(function: s.Function) -> set[str]:
    names = {"memory"}
    for param in function.params:
        names.add(param.var.name if isinstance(param, s.Scalar) else param.buffer.name)
    for tensor in function.tensors:
        for extent in (*tensor.buffer.shape, *(tensor.buffer.strides or ())):
            names |= {v.name for v in walk(extent) if isinstance(v, e.Var)}
    for node in walk(function.body):
        for owner in (getattr(node, "var", None), getattr(node, "buffer", None)):
            if owner is not None:
                names.add(owner.name)
        if isinstance(node, e.Var):
            names.add(node.name)
    return names


def _product(extents: tuple[int, ...]) -> int:
    total = 1
    for extent in extents:
        total *= extent
    return total
