"""How long a kernel should take, from its tile IR and the sizes of a call, without running or compiling it.

A block's time is the sum of its operators': products at the rate of their unit (tiles rounded up to what it takes),
copies at the rate behind the cache, element-wise work by lanes. Blocks share out the cores in whole waves. A kernel can
be no faster than its tensors once through memory and its products at the unit's rate: that is its bound.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.evaluate import Number, evaluate
from mortice.tile.ir.walk import children, walk
from mortice.tile.passes.tiling import CPU, GPU, tiling
from mortice.tile.tune.machine import Machine

UNKNOWN_TRIPS = 8  # of a loop whose end is in a tensor
MATH = 8  # lanes that a function such as exp costs
SAMPLES = 5  # blocks looked at in each direction of the grid, where loops hang on it


@dataclass(frozen=True, slots=True)
class Prediction:
    """seconds: with this schedule. bound: no schedule is faster; bound_by "compute" or "memory". flops: of products;
    bytes: of all tensors once. tile_bytes: of a block's tiles. data_dependent: some loop's end was guessed."""

    seconds: float
    bound: float
    bound_by: str
    flops: float
    bytes: float
    blocks: int
    tile_bytes: int
    data_dependent: bool


@dataclass
class _Cost:
    seconds: float = 0.0
    flops: float = 0.0
    peak: float = 0.0  # seconds of the products alone, tiles not rounded
    guessed: bool = False

    def add(self, other: "_Cost", times: float = 1.0) -> None:
        self.seconds += other.seconds * times
        self.flops += other.flops * times
        self.peak += other.peak * times
        self.guessed |= other.guessed


def predict(function: s.Function, dims: Mapping[str, Number], machine: Machine) -> Prediction:
    """function: tile IR of any level. dims: values of dimensions and scalars, as `host.bind` finds them."""
    function = tiling(GPU if machine.name == "H200" else CPU).run(function)
    names: dict[str, Number] = dict(dims)
    total, seconds, blocks, tile_bytes = _Cost(), 0.0, 0, 0
    for x in function.body:
        if isinstance(x, s.Let):
            _set(names, x.var, x.value)
        if not isinstance(x, s.Launch):
            continue
        grid = [max(0, int(_value(extent, names, 1))) for extent in x.extents]
        count = math.prod(grid)
        if not count:
            continue
        held = sum(_bytes(node.buffer) for node in walk(x.body) if isinstance(node, s.Alloc))
        slow = 1.0 if machine.overlaps else 1.0 + max(0.0, min(1.0, held / machine.cache - 1.0))
        average = _Cost()
        picks = _picks(x, grid)
        for pick in picks:
            inside = names | {var.name: at for var, at in zip(x.vars, pick, strict=True)}
            average.add(_block(x.body, inside, machine), 1 / len(picks))
        waves = math.ceil(count / machine.cores)
        seconds += waves * (average.seconds * slow + machine.block)
        total.add(average, count)
        blocks, tile_bytes = blocks + count, max(tile_bytes, held)
    moved = sum(
        math.prod(int(_value(extent, names, 1)) for extent in tensor.buffer.shape)
        * tensor.buffer.dtype.bits
        / 8
        for tensor in function.tensors
    )
    memory, compute = moved / machine.bandwidth, total.peak / machine.cores
    return Prediction(
        max(seconds, memory),
        max(memory, compute),
        "compute" if compute > memory else "memory",
        total.flops,
        moved,
        blocks,
        tile_bytes,
        total.guessed,
    )


def block_seconds(block: s.Block, dims: Mapping[str, Number], machine: Machine) -> float:
    """Of statements as they stand in one block, its variables unknown."""
    return _block(block, dict(dims), machine).seconds


def _picks(x: s.Launch, grid: list[int]) -> list[tuple[int, ...]]:
    """Blocks along the diagonal of the grid; one, if no loop hangs on where a block is."""
    own = {var.name for var in x.vars}
    ends = [end for node in walk(x.body) if isinstance(node, s.For) for end in (node.start, node.stop)]
    hangs = any(isinstance(n, e.Var) and n.name in own for end in ends for n in walk(end))
    samples = SAMPLES if hangs else 1
    return [tuple(int((i + 0.5) / samples * size) for size in grid) for i in range(samples)]


def _block(block: s.Block, names: dict[str, Number], machine: Machine) -> _Cost:
    total = _Cost()
    for x in block:
        total.add(_statement(x, names, machine))
    return total


def _statement(x: s.Stmt, names: dict[str, Number], machine: Machine) -> _Cost:
    match x:
        case s.Let():
            _set(names, x.var, x.value)
            return _Cost()
        case s.For():
            return _loop(x, names, machine)
        case s.If():
            sides = [_block(side, dict(names), machine) for side in (x.then, x.otherwise)]
            return max(sides, key=lambda side: side.seconds)
        case s.While():
            cost = _Cost(guessed=True)
            cost.add(_block(x.body, dict(names), machine), UNKNOWN_TRIPS)
            return cost
        case s.Parallel():
            items = math.prod(int(_value(extent, names, 1)) for extent in x.extents)
            return _Cost(items * _work(x.body, dict(names)) / machine.lanes)
        case s.Copy():
            items = math.prod(_extent(x, i, names) for i in range(len(x.target.kept)))
            outside = x.source.buffer if not x.source.buffer.on_chip else x.target.buffer
            moved = items * outside.dtype.bits / 8
            through = moved / machine.cache_bandwidth if not outside.on_chip else 0.0
            return _Cost(through + items / (4 * machine.lanes))
        case s.Fill():
            return _Cost(_items(x.target) / (4 * machine.lanes))
        case s.Gemm():
            return _product(x, machine)
        case s.Reduce() | s.Scan():
            return _Cost(2 * _items(x.source) / machine.lanes)
        case s.Store() | s.Assign() | s.Atomic():
            return _Cost(_operations(x) / machine.lanes)
    return _Cost()


def _loop(x: s.For, names: dict[str, Number], machine: Machine) -> _Cost:
    cost = _Cost()
    try:
        start, stop, step = (int(evaluate(end, names)) for end in (x.start, x.stop, x.step))
        trips = max(0, -(-(stop - start) // step))
    except (KeyError, ValueError, ZeroDivisionError):
        start, step, trips, cost.guessed = 0, 1, UNKNOWN_TRIPS, True
    if x.kind == "vector":
        cost.seconds += trips * _work(x.body, dict(names)) / machine.lanes
        return cost
    inside = names | {x.var.name: start + trips // 2 * step}
    one = _block(x.body, dict(inside), machine)
    if machine.overlaps and x.kind == "pipelined" and x.stages > 1:
        loads = tuple(y for y in x.body if isinstance(y, s.Copy) and not y.source.buffer.on_chip)
        products = tuple(y for y in x.body if isinstance(y, s.Gemm))
        copying, multiplying = (_block(part, dict(inside), machine).seconds for part in (loads, products))
        one.seconds = max(copying, multiplying, one.seconds - copying - multiplying)
    cost.add(one, trips)
    return cost


def _product(x: s.Gemm, machine: Machine) -> _Cost:
    m, n = (int(extent.value) for extent in x.c.shape if isinstance(extent, e.Const))
    sides = [int(extent.value) for extent in x.a.shape if isinstance(extent, e.Const)]
    k = sides[0] if x.transpose_a else sides[1]
    rate = machine.rate(x.a.buffer.dtype.name)
    padded = -(-m // machine.rows) * machine.rows * (-(-n // 32) * 32)
    # on a CPU operands of a narrow or shallow tile pass through the cache more often for the same work
    filled = 1.0 if machine.overlaps else min(1.0, 0.5 + n / 512) * min(1.0, 0.5 + k / 512)
    flops = 2.0 * m * n * k
    return _Cost(2.0 * padded * k / (rate * filled), flops, flops / rate)


def _work(block: s.Block, names: dict[str, Number]) -> float:
    """Lanes that one iteration of a parallel loop costs."""
    total = 0.0
    for x in block:
        if isinstance(x, s.For):
            try:
                trips = max(0, int(evaluate(x.stop, names)) - int(evaluate(x.start, names)))
            except (KeyError, ValueError):
                trips = UNKNOWN_TRIPS
            total += trips * _work(x.body, names)
        elif isinstance(x, s.If):
            total += _operations(x.condition) + max(_work(x.then, names), _work(x.otherwise, names))
        else:
            total += _operations(x)
    return total


def _operations(x: e.Expr | s.Stmt) -> float:
    own = MATH if isinstance(x, e.Math) else 1 if isinstance(x, e.Binary | e.Load | s.Store | e.Select) else 0
    return own + sum(_operations(child) for child in children(x) if isinstance(child, e.Expr | s.Stmt))


def _extent(x: s.Copy, i: int, names: dict[str, Number]) -> int:
    """Of a copied box, no more than the tensor has there."""
    here = x.target.shape[i] if x.target.buffer.on_chip else x.source.shape[i]
    items = int(_value(here, names, 1))
    for side in (x.source, x.target):
        if not side.buffer.on_chip:
            items = min(items, int(_value(side.buffer.shape[side.kept[i]], names, items)))
    return items


def _items(region: e.Region) -> int:
    return math.prod(int(extent.value) for extent in region.shape if isinstance(extent, e.Const))


def _bytes(buffer: e.Buffer) -> int:
    return math.prod(buffer.extents) * buffer.dtype.bits // 8


def _set(names: dict[str, Number], var: e.Var, value: e.Expr) -> None:
    try:
        names[var.name] = evaluate(value, names)
    except (KeyError, ValueError, ZeroDivisionError):
        names.pop(var.name, None)


def _value(x: e.Expr, names: Mapping[str, Number], otherwise: Number) -> Number:
    try:
        return evaluate(x, names)
    except (KeyError, ValueError, ZeroDivisionError):
        return otherwise
