"""A ring of one slot, waited for and given back panel by panel: where a tile is so large that no second version of it
fits, the next iteration's copy begins while this one's products still run (as in deepseek-ai/FlashMLA).

The tile [keys, D] is read by two products of one loop: the first (q @ kv.T) goes along its columns, so it may start with
the first panel; the second (p @ kv[:, :DV]) gives each warpgroup columns of its own, so each frees its panels as it goes.
Invariant, checked where the schedule is made: in each iteration every computing warp arrives once at the barrier of every
panel, after the last product of its own that reads it.

Panels that only the first product reads lie idle until the end of the iteration; a tile that lives from the first
product to the second may take their place (`overlay`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import buffers, walk
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu import matrix
from mortice.tile.passes.gpu.context import Context, Counter, advance
from mortice.tile.passes.gpu.rings import Ring, is_load
from mortice.tile.passes.gpu.tiles import SharedTile

AT_ONCE = 2  # panels whose columns one product of the second chain covers


@dataclass(frozen=True, slots=True)
class Panels:
    """Of one ring. count: all panels; used: those of the second product, shared out to `groups` warpgroups in equal
    runs; overlay: a tile that lies where the others are, "" for none."""

    first: s.Gemm
    second: s.Gemm
    count: int
    used: int
    groups: int
    overlay: str = ""

    @property
    def own(self) -> int:
        """Panels whose columns one warpgroup computes."""
        return self.used // self.groups

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """Panels of a warpgroup, counted from its first, that one product of the second chain frees."""
        return tuple(tuple(range(at, min(at + AT_ONCE, self.own))) for at in range(0, self.own, AT_ONCE))

    @property
    def idle(self) -> tuple[int, ...]:
        """Panels that the second product does not read."""
        return tuple(range(self.used, self.count))

    @property
    def order(self) -> tuple[int, ...]:
        """In which they are freed, hence filled and waited for."""
        shared = (g * self.own + i for step in self.steps for g in range(self.groups) for i in step)
        return (*shared, *self.idle)

    def check(self) -> None:
        """Each warpgroup gives every panel back once."""
        assert sorted(self.order) == list(range(self.count)), "a panel is filled twice, or not at all"
        for group in range(self.groups):
            mine = [group * self.own + i for step in self.steps for i in step]
            others = [g * self.own + i for g in range(self.groups) if g != group for i in range(self.own)]
            assert sorted([*mine, *others, *self.idle]) == list(range(self.count)), "a panel is freed twice"


def find_panels(ring: Ring, tile: SharedTile, groups: int, side_by_side: bool) -> Panels | None:
    """How the ring's tile may go panel by panel; None where it may not."""
    if ring.loop is None or ring.stages != 1 or len(ring.tiles) != 1 or not side_by_side or not tile.width:
        return None
    users = [x for x in ring.loop.body if not is_load(x) and any(b.name == tile.name for b in buffers(x))]
    if len(users) != 2 or not all(isinstance(x, s.Gemm) and x.b.buffer.name == tile.name for x in users):
        return None
    first, second = users
    assert isinstance(first, s.Gemm)
    assert isinstance(second, s.Gemm)
    if tile.name in (first.a.buffer.name, second.a.buffer.name) or second.a.buffer.scope != "shared":
        return None
    if (
        not first.transpose_b
        or second.transpose_b
        or not first.clear
        or first.transpose_a
        or second.transpose_a
    ):
        return None
    whole = [x.target.extents[-1] == e.const(tile.columns) for x in ring.copies]
    if not all(whole) or first.b.shape[1] != e.const(tile.columns) or second.b.offsets[-1] != e.const(0):
        return None
    columns = int(second.b.shape[1].value)  # type: ignore[attr-defined]
    if columns % (tile.panel_columns * groups):
        return None
    return Panels(first, second, tile.panels, columns // tile.panel_columns, groups)


def overlay(ring: Ring, panels: Panels, tiles: dict[str, SharedTile], launch: s.Launch) -> str:
    """The tile that may lie in the idle panels: filled after the first product by a copy of all threads, read by the
    second, and mentioned nowhere else. "" for none."""
    assert ring.loop is not None
    name, tile = panels.second.a.buffer.name, tiles[panels.first.b.buffer.name]
    users = [
        x
        for x in walk(launch.body)
        if isinstance(x, s.Copy | s.Gemm | s.Parallel | s.Fill | s.Store)
        and any(b.name == name for b in buffers(x))
    ]
    if len(users) != 2 or not isinstance(users[0], s.Copy) or users[1] is not panels.second:
        return ""
    places = [i for i, x in enumerate(ring.loop.body) if x is panels.first or x is users[0]]
    if len(places) != 2 or ring.loop.body[places[0]] is not panels.first:
        return ""
    fits = tiles[name].bytes <= len(panels.idle) * tile.panel_bytes
    return name if fits and users[0].source.buffer.scope == "fragment" else ""


# What a computing warpgroup does


def start_first(cx: Context, ring: Ring, panels: Panels, tiles: dict[str, SharedTile], at: Counter) -> None:
    """One chain, which goes on to a panel as soon as that has come."""
    tile = tiles[ring.tiles[0]]
    each = tile.panel_columns * tile.dtype.bytes // 32  # steps along the sum
    for panel in panels.order:
        cx.op("barrier_wait", a.box(ring.full, panel), at.parity)
        cx.op("wgmma_fence")
        matrix.issue(cx, panels.first, tiles, True, steps=range(panel * each, (panel + 1) * each))
    cx.op("wgmma_commit")
    advance(cx, at, 1)


def start_second(cx: Context, panels: Panels, tiles: dict[str, SharedTile]) -> Iterator[tuple[int, ...]]:
    """A chain for each step; yields the panels that are free when it is done."""
    width = tiles[panels.second.b.buffer.name].panel_columns
    for step in panels.steps:
        cx.op("wgmma_fence")
        matrix.issue(cx, panels.second, tiles, True, columns=range(step[0] * width, (step[-1] + 1) * width))
        cx.op("wgmma_commit")
        yield step


def give_back(
    cx: Context, ring: Ring, panels: Panels, own: tuple[int, ...], idle: bool, others: bool
) -> None:
    """One arrival of this warp for each of these panels. own: counted from the warpgroup's first."""
    group = a.call("warpgroup")
    free: list[e.Expr] = [a.add(a.mul(group, panels.own), i) for i in own]
    for distance in range(1, panels.groups) if others else ():
        first = a.mul(a.mod(a.add(group, distance), panels.groups), panels.own)
        free += [a.add(first, i) for i in range(panels.own)]
    free += [a.const(i) for i in panels.idle] if idle else []
    with cx.when(a.equal(a.call("lane"), 0)):
        for panel in free:
            cx.op("barrier_arrive", a.box(ring.empty, panel))
