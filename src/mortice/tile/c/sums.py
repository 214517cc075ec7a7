"""Sums that a loop of products begins by itself: its first product overwrites, and zeros are neither written nor read."""

from dataclasses import dataclass

from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import buffers


@dataclass(frozen=True)
class Begun:
    """zeros: to be written only if the loop has no iterations. product: overwrites in the loop's first."""

    zeros: s.Fill
    loop: s.For
    product: s.Gemm

    @property
    def first(self) -> str:
        """The C name of the loop's first index."""
        return f"first_{self.zeros.target.buffer.name}__"


def begun(block: s.Block) -> list[Begun]:
    found = []
    for i, zeros in enumerate(block):
        if not (isinstance(zeros, s.Fill) and zeros.value == e.const(0, zeros.target.buffer.dtype)):
            continue
        tile = zeros.target.buffer
        users = (x for x in block[i + 1 :] if any(buffer.name == tile.name for buffer in buffers(x)))
        loop = next(users, None)
        if isinstance(loop, s.For) and zeros.target.extents == tile.shape:
            mentions = sum(buffer.name == tile.name for buffer in buffers(loop))
            products = [x for x in loop.body if isinstance(x, s.Gemm) and x.c.buffer.name == tile.name]
            if mentions == len(products) == 1 and products[0].c.extents == tile.shape:
                found.append(Begun(zeros, loop, products[0]))
    return found
