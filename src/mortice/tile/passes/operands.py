"""Lays out tiles that only `gemm` reads as its micro-kernel wants them, so that copying them there packs them.

Gives "packed": such a tile has a scope "panels_a", "panels_b" or "panels_b_turned" (stored [n, k]) for its one use, or
"panels_there": read where it lies, in a tensor in panels (`tile.panels`). A tile that has other readers, or two uses,
keeps its rows, and gemm packs it each time.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mortice.tile import dtypes
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import buffers, transform_block, walk, with_body
from mortice.tile.passes.panels import by_elements
from mortice.tile.passes.pipeline import Pass
from mortice.tile.passes.ranges import Ranges, dimensions
from mortice.tile.passes.tiling.patterns import Names

Scope = str
NUMBERS = (dtypes.bf16, dtypes.f32)


def pack_operands(function: s.Function, matrix_unit: bool) -> s.Function:
    """matrix_unit: bf16 products have one (AMX, or dot products of AVX-512); without, they go through f32 and only f32 tiles
    are packed."""
    ranges, names = dimensions(function), Names.of(function)
    body = tuple(
        _launch(x, ranges, matrix_unit, names) if isinstance(x, s.Launch) else x for x in function.body
    )
    return with_body(function, body)


def _launch(launch: s.Launch, ranges: Ranges, matrix_unit: bool, names: Names) -> s.Launch:
    found = _Uses()
    for buffer in buffers(launch.body):
        found.mentions[buffer.name] += 1
    for node, known in _walk(launch.body, ranges, launch):
        found.see(node, known)
    scopes = found.scopes()
    tiles = {node.buffer.name: node.buffer for node in walk(launch.body) if isinstance(node, s.Alloc)}
    for node in walk(launch.body):
        if isinstance(node, s.Copy) and node.target.buffer.name in scopes and not _types(node, scopes):
            scopes.pop(node.target.buffer.name, None)
    scopes = {n: k for n, k in scopes.items() if _worth(tiles.get(n), k, matrix_unit)}
    body = _where_they_lie(launch.body, found, scopes, names) if found.unpacked else launch.body
    return replace(launch, body=transform_block(body, _rescope(scopes)))


@dataclass
class _Uses:
    """Of each tile: forms that products want it in, mentions, how many of these are an allocation, a copy into it or a
    product, how many are copies out of panels."""

    kinds: dict[str, set[Scope]] = field(default_factory=lambda: defaultdict(set))
    barred: set[str] = field(default_factory=set)
    mentions: Counter[str] = field(default_factory=Counter)
    explained: Counter[str] = field(default_factory=Counter)
    unpacked: Counter[str] = field(default_factory=Counter)

    def see(self, node: Any, known: Ranges) -> None:
        match node:
            case s.Alloc():
                self.explained[node.buffer.name] += 1
            case s.Gemm():
                for region, side in ((node.a, "panels_a"), (node.b, "panels_b")):
                    turned = "_turned" if (node.transpose_a, node.transpose_b)[region is node.b] else ""
                    self.kinds[region.buffer.name].add(side + turned if _whole(region) else "part")
                    self.explained[region.buffer.name] += 1
            case s.Unpack():
                self.explained[node.target.buffer.name] += 1
                self.unpacked[node.target.buffer.name] += 1
                if node.source.buffer.strides is not None:
                    self.barred.add(node.target.buffer.name)
            case s.Copy() if node.target.buffer.on_chip:
                self.explained[node.target.buffer.name] += 1
                if not _packs(node, known):
                    self.barred.add(node.target.buffer.name)

    def scopes(self) -> dict[str, Scope]:
        made: dict[str, Scope] = {}
        for name, kinds in self.kinds.items():
            (kind, *others) = kinds
            alone = not others and name not in self.barred
            if alone and kind in SIDES and self.mentions[name] == self.explained[name]:
                made[name] = kind
        return made


def _where_they_lie(body: s.Block, found: _Uses, scopes: dict[str, Scope], names: Names) -> s.Block:
    """A tile that is nothing but squares of panels, for one product, is no copy of them. Others get their elements."""
    for name, count in found.unpacked.items():
        alone = scopes.pop(name, None) == "panels_b_turned" and found.explained[name] == count + 2
        if alone:
            scopes[name] = "panels_there"

    def by_hand(node: Any) -> Any:
        left = isinstance(node, s.Unpack) and node.target.buffer.name not in scopes
        return by_elements(node, names) if left else node

    return transform_block(body, by_hand)


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
