"""When copies and computation of a pipelined loop's iterations happen, by the model's costs.

On a GPU a copy of iteration i may start when the slot of iteration i - stages is free again, and computing starts when
the copy has landed. A CPU does one after the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mortice.tile.ir import stmt as s
from mortice.tile.ir.evaluate import Number
from mortice.tile.ir.walk import walk
from mortice.tile.passes import run
from mortice.tile.passes.tiling import CPU, GPU, tiling
from mortice.tile.tune.machine import Machine
from mortice.tile.tune.model import block_seconds

SHOWN = 12
LATENCY = 0.8e-6  # seconds from a copy's issue to its first byte on a GPU


@dataclass(frozen=True, slots=True)
class Bar:
    """who: "copy" or "compute"; slot of the ring it works on."""

    who: str
    iteration: int
    slot: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    loop: s.For
    stages: int
    bars: tuple[Bar, ...]


def timeline(
    function: s.Function, dims: dict[str, Number], machine: Machine, overlaps: bool
) -> Timeline | None:
    """Of the first pipelined loop; None if there is none."""
    function = run(function, (tiling(GPU if overlaps else CPU),))
    loop = next((x for x in walk(function.body) if isinstance(x, s.For) and x.kind == "pipelined"), None)
    if loop is None:
        return None
    loads = [x for x in loop.body if isinstance(x, s.Copy) and not x.source.buffer.on_chip]
    rest = [x for x in loop.body if x not in loads]
    copying = block_seconds(tuple(loads), dims, machine)
    computing = block_seconds(tuple(rest), dims, machine)
    stages = max(1, loop.stages) if overlaps else 1
    return Timeline(loop, stages, tuple(_bars(copying, computing, stages, LATENCY if overlaps else 0.0)))


def _bars(copying: float, computing: float, stages: int, latency: float) -> Iterator[Bar]:
    copied, done = [0.0] * SHOWN, [0.0] * SHOWN
    for i in range(SHOWN):
        free = done[i - stages] if i >= stages else 0.0
        begin = max(copied[i - 1] - latency if i else 0.0, free)
        copied[i] = begin + copying + latency
        start = max(copied[i], done[i - 1] if i else 0.0)
        done[i] = start + computing
        yield Bar("copy", i, i % stages, begin, copied[i])
        yield Bar("compute", i, i % stages, start, done[i])
