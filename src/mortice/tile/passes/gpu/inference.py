"""Which layout each fragment has: the matrix unit speaks first, then the neighbours agree, then there is free choice."""

from mortice.tile.diagnostics import UnsupportedError
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.passes.gpu.fragments import Layout, accumulator, beside, by_warps, spread, warp_tiles

VECTOR_BYTES = 16


def infer(
    launch: s.Launch, threads: int, groups: int, side_by_side: bool, warps: tuple[int, int] | None = None
) -> dict[str, Layout]:
    """groups: warpgroups that compute, 0 where no statement needs wgmma. warps: below and beside one another, where
    they multiply with mma."""
    fragments = {
        x.buffer.name: x.buffer
        for x in walk(launch)
        if isinstance(x, s.Alloc) and x.buffer.scope == "fragment"
    }
    layouts: dict[str, Layout] = {}
    for node in walk(launch):
        if isinstance(node, s.Gemm) and groups:
            shape = node.c.buffer.extents
            make = beside if side_by_side else accumulator
            layouts[node.c.buffer.name] = make(shape[0], shape[1], groups)
            if node.a.buffer.scope == "fragment":
                rows, columns = node.a.buffer.extents
                layouts[node.a.buffer.name] = accumulator(rows, columns, groups)
        elif isinstance(node, s.Gemm) and warps:
            layouts[node.c.buffer.name] = warp_tiles(
                node.c.buffer.extents[0], node.c.buffer.extents[1], *warps
            )
            if node.a.buffer.scope == "fragment":
                layouts[node.a.buffer.name] = warp_tiles(
                    node.a.buffer.extents[0], node.a.buffer.extents[1], *warps
                )
        elif isinstance(node, s.Gemm):
            layouts[node.c.buffer.name] = by_warps(
                node.c.buffer.extents[0], node.c.buffer.extents[1], threads
            )
    while True:
        _agree(launch, layouts)
        open_ones = [buffer for name, buffer in fragments.items() if name not in layouts]
        if not open_ones:
            break
        root = max(open_ones, key=lambda buffer: (len(buffer.shape), _cells(buffer)))
        vector = max(1, VECTOR_BYTES // _narrowest(launch, root))
        layouts[root.name] = spread(root.extents, threads, vector)
    for layout in layouts.values():
        layout.check(threads)
    return layouts


def _agree(launch: s.Launch, layouts: dict[str, Layout]) -> None:
    """Until nothing more follows from what is known."""
    changed = True
    while changed:
        before = len(layouts)
        for node in walk(launch):
            match node:
                case s.Copy() if node.source.buffer.scope == node.target.buffer.scope == "fragment":
                    _same(node, node.source.buffer, node.target.buffer, layouts)
                case s.Scan():
                    _same(node, node.source.buffer, node.target.buffer, layouts)
                case s.Reduce() if node.source.buffer.name in layouts:
                    kept = [i for i in range(len(node.source.buffer.shape)) if i != node.axis]
                    layouts.setdefault(
                        node.target.buffer.name, layouts[node.source.buffer.name].project(kept)
                    )
                case s.Parallel():
                    _parallel(node, layouts)
        changed = len(layouts) != before


def _same(node: s.Stmt, one: e.Buffer, other: e.Buffer, layouts: dict[str, Layout]) -> None:
    if one.extents != other.extents:
        raise UnsupportedError(
            node.span,
            "copy",
            f"{one.name} {list(one.extents)} and {other.name} {list(other.extents)} are parts",
            "copy whole fragments",
        )
    for known, unknown in ((one, other), (other, one)):
        if known.name in layouts:
            layouts.setdefault(unknown.name, layouts[known.name])


def _parallel(loop: s.Parallel, layouts: dict[str, Layout]) -> None:
    found = loop_layout(loop, layouts)
    if found is None:
        return
    for buffer, axes in accesses(loop):
        if None not in axes and buffer.name not in layouts:
            layouts[buffer.name] = found.project([axis for axis in axes if axis is not None])


def loop_layout(loop: s.Parallel, layouts: dict[str, Layout]) -> Layout | None:
    """That of a fragment which all the loop's variables index."""
    for buffer, axes in accesses(loop):
        if (
            buffer.name in layouts
            and None not in axes
            and sorted(map(_number, axes)) == list(range(len(loop.vars)))
        ):
            order = [axes.index(i) for i in range(len(loop.vars))]
            found = layouts[buffer.name].project(order)
            if order == sorted(order):
                return layouts[buffer.name]
            return found
    return None


def accesses(loop: s.Parallel) -> list[tuple[e.Buffer, list[int | None]]]:
    """Fragments in the loop, and for each of their dimensions which loop variable indexes it."""
    names = {var.name: i for i, var in enumerate(loop.vars)}
    out: list[tuple[e.Buffer, list[int | None]]] = []
    for node in walk(loop.body):
        if isinstance(node, e.Load | s.Store) and node.buffer.scope == "fragment":
            axes = [names.get(i.name) if isinstance(i, e.Var) else None for i in node.indices]
            out.append((node.buffer, axes))
    written = {node.buffer.name for node in walk(loop.body) if isinstance(node, s.Store)}
    return sorted(out, key=lambda pair: pair[0].name not in written)


def _number(axis: int | None) -> int:
    return -1 if axis is None else axis


def _cells(buffer: e.Buffer) -> int:
    total = 1
    for extent in buffer.extents:
        total *= extent
    return total


def _narrowest(launch: s.Launch, fragment: e.Buffer) -> int:
    """Bytes of the narrowest element that a copy moves to or from the fragment."""
    sizes = [4]
    for node in walk(launch):
        if isinstance(node, s.Copy) and fragment.name in (node.source.buffer.name, node.target.buffer.name):
            sizes += [node.source.buffer.dtype.bytes, node.target.buffer.dtype.bytes]
    return min(sizes)
