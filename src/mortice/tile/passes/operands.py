"""Lays out tiles that only `gemm` reads as its micro-kernel wants them, so that copying them there packs them.

Gives "packed": such a tile has a scope "panels_a", "panels_b" or "panels_b_turned" (stored [n, k]) for its one use. A
tile that has other readers, or two uses, keeps its rows, and gemm packs it each time.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from mortice.tile import dtypes
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import buffers, transform_block, walk, with_body
from mortice.tile.passes.pipeline import Pass
from mortice.tile.passes.ranges import Ranges, dimensions

Scope = str
NUMBERS = (dtypes.bf16, dtypes.f32)


def pack_operands(function: s.Function, matrix_unit: bool) -> s.Function:
    """matrix_unit: bf16 products have one (AMX); without, they go through f32 and only f32 tiles are packed."""
    ranges = dimensions(function)
    body = tuple(_launch(x, ranges, matrix_unit) if isinstance(x, s.Launch) else x for x in function.body)
    return with_body(function, body)


def _launch(launch: s.Launch, ranges: Ranges, matrix_unit: bool) -> s.Launch:
    uses: dict[str, set[Scope]] = defaultdict(set)
    barred: set[str] = set()
    mentions: dict[str, int] = defaultdict(int)
    explained: dict[str, int] = defaultdict(int)
    for buffer in buffers(launch.body):
        mentions[buffer.name] += 1
    for node, known in _walk(launch.body, ranges, launch):
        match node:
            case s.Alloc():
                explained[node.buffer.name] += 1
            case s.Gemm():
                for region, side in ((node.a, "panels_a"), (node.b, "panels_b")):
                    turned = "_turned" if (node.transpose_a, node.transpose_b)[region is node.b] else ""
                    uses[region.buffer.name].add(side + turned if _whole(region) else "part")
                    explained[region.buffer.name] += 1
            case s.Copy() if node.target.buffer.on_chip:
                explained[node.target.buffer.name] += 1
                if not _packs(node, known):
                    barred.add(node.target.buffer.name)
    scopes: dict[str, Scope] = {}
    for name, kinds in uses.items():
        (kind, *others) = kinds
        if not others and kind in SIDES and name not in barred and mentions[name] == explained[name]:
            scopes[name] = kind
    tiles = {node.buffer.name: node.buffer for node in walk(launch.body) if isinstance(node, s.Alloc)}
    for node in walk(launch.body):
        if isinstance(node, s.Copy) and node.target.buffer.name in scopes and not _types(node, scopes):
            scopes.pop(node.target.buffer.name, None)
    scopes = {n: k for n, k in scopes.items() if _worth(tiles.get(n), k, matrix_unit)}
    return replace(launch, body=transform_block(launch.body, _rescope(scopes))) if scopes else launch


SIDES = ("panels_a", "panels_b", "panels_b_turned")


def _worth(tile: e.Buffer | None, kind: Scope, matrix_unit: bool) -> bool:
    if tile is None or tile.dtype not in NUMBERS:
        return False
    return matrix_unit if tile.dtype == dtypes.bf16 else kind != "panels_a"


def _types(copy: s.Copy, scopes: dict[str, Scope]) -> bool:
    """From the same type; rows of f32 also round to bf16 on their way into left panels."""
    source, target = copy.source.buffer, copy.target.buffer
    if _row(copy.target) and scopes[target.name] != "panels_a":
        return False
    if source.dtype == target.dtype:
        return True
    rounds = source.dtype == dtypes.f32 and target.dtype == dtypes.bf16 and source.on_chip
    return rounds and scopes[target.name] == "panels_a"


def _packs(copy: s.Copy, ranges: Ranges) -> bool:
    """A whole two-dimensional tile from rows of unit stride, at offsets that are not negative, with zeros around."""
    source = copy.source
    unit = source.buffer.strides is None or source.buffer.strides[-1] == e.const(1)
    inner = bool(source.kept) and source.kept[-1] == len(source.buffer.shape) - 1
    lows = [ranges.of(source.offsets[axis])[0] for axis in source.kept]
    positive = all(low is not None and low >= 0 for low in lows)
    zero = isinstance(copy.pad, e.Const) and copy.pad.value == 0
    whole = _whole(copy.target) or (_row(copy.target) and source.buffer.on_chip)
    return unit and inner and positive and zero and whole


def _whole(region: e.Region) -> bool:
    return (
        region.kept == (0, 1)
        and all(offset == e.const(0) for offset in region.offsets)
        and region.extents == region.buffer.shape
    )


def _row(region: e.Region) -> bool:
    """One whole row of a matrix."""
    return (
        region.kept == (1,)
        and region.offsets[1] == e.const(0)
        and region.extents[1] == region.buffer.shape[1]
    )


def _rescope(scopes: dict[str, Scope]) -> Callable[[Any], Any]:
    def change(node: Any) -> Any:
        match node:
            case s.Alloc() if node.buffer.name in scopes:
                return replace(node, buffer=replace(node.buffer, scope=scopes[node.buffer.name]))
            case e.Region() if node.buffer.name in scopes:
                return replace(node, buffer=replace(node.buffer, scope=scopes[node.buffer.name]))
        return node

    return change


def _walk(block: s.Block, ranges: Ranges, launch: s.Launch) -> Iterator[tuple[Any, Ranges]]:
    """Statements with what is known of the names at each."""

    def inside(statements: s.Block) -> Iterator[tuple[Any, Ranges]]:
        for x in statements:
            yield x, ranges
            match x:
                case s.For() if isinstance(x.step, e.Const) and x.step.value > 0:
                    with ranges.loop((x.var,), (x.stop,), x.start):
                        yield from inside(x.body)
                case s.For() | s.While():
                    yield from inside(x.body)
                case s.Parallel():
                    with ranges.loop(x.vars, x.extents):
                        yield from inside(x.body)
                case s.If():
                    yield from inside(x.then)
                    yield from inside(x.otherwise)
                case s.Let():
                    ranges.let(x)

    with ranges.loop(launch.vars, launch.extents):
        yield from inside(block)


def check(function: s.Function) -> None:
    """A packed tile is touched by nothing but gemm and the copies that fill it."""
    for node in walk(function.body):
        if isinstance(node, e.Load | s.Store | s.Atomic):
            assert not node.buffer.scope.startswith("panels"), f"{node.span}: {node.buffer.name} is packed"
        if isinstance(node, s.Reduce | s.Scan | s.Fill):
            for region in (x for x in walk(node) if isinstance(x, e.Region)):
                assert not region.buffer.scope.startswith("panels"), (
                    f"{node.span}: {region.buffer.name} is packed"
                )


def operands(matrix_unit: bool) -> Pass:
    return Pass(
        "operands", lambda function: pack_operands(function, matrix_unit), check, gives=frozenset({"packed"})
    )
