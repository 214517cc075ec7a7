"""What compiled code refuses at run time: boxes that leave their tile, facts that do not hold, steps of zero.

A refused statement does not run; the call then raises CheckError with the place in the kernel's file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from mortice.tile.c.expression import Expressions
from mortice.tile.diagnostics import CheckError, Span
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import children


@dataclass(frozen=True, slots=True)
class Site:
    span: Span
    operator: str
    problem: str
    remedy: str

    def error(self) -> CheckError:
        return CheckError(self.span, self.operator, self.problem, self.remedy)


@dataclass
class Checks:
    """sites[n - 1] is what `refuse(n)` in the C means."""

    c: Expressions
    sites: list[Site] = field(default_factory=list)

    def refusal(self, span: Span, operator: str, problem: str, remedy: str) -> str:
        self.sites.append(Site(span, operator, problem, remedy))
        return f"refuse(&failed, {len(self.sites)});"

    def boxes(self, x: s.Stmt) -> list[tuple[str, e.Region]]:
        """For each box of a tile in a tile operator that is not proven to lie inside: the condition that it does."""
        return [(test, region) for region in _regions(x) for test in self._tests(region)]

    def _tests(self, region: e.Region) -> Iterator[str]:
        if not region.buffer.on_chip:
            return
        for offset, extent, limit in zip(region.offsets, region.extents, region.buffer.extents, strict=True):
            low, end = self.c.ranges.of(offset)[0], build.binary("add", offset, extent)
            if low is None or low < 0:
                yield f"({self.c(offset)}) >= 0"
            high = self.c.ranges.of(end)[1]
            if high is None or high > limit:
                yield f"({self.c(end)}) <= {limit}"


def _regions(x: s.Stmt) -> Iterator[e.Region]:
    if isinstance(x, s.Copy | s.Fill | s.Gemm | s.Reduce | s.Scan):
        for child in children(x):
            if isinstance(child, e.Region):
                yield child
