"""Layouts of fragments: which thread holds which element in which register.

Each dimension of a tile is written as digits of mixed radix, the fastest first; each digit is read off the thread or off
the register. So a layout is invertible by looking at it, and projecting (what a reduction does) drops a dimension's
digits. Values are the same in all threads that differ only in the digits of `copies`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mortice.tile.ir import expr as e
from mortice.tile.passes.gpu import arithmetic as a


@dataclass(frozen=True, slots=True)
class Digit:
    """place: "thread" or "slot"; stride: what one step of it adds to that number."""

    size: int
    place: str
    stride: int


def thread(size: int, stride: int) -> Digit:
    return Digit(size, "thread", stride)


def slot(size: int, stride: int) -> Digit:
    return Digit(size, "slot", stride)


@dataclass(frozen=True, slots=True)
class Layout:
    """dims: digits of each dimension, those of one step dropped. They may count further than the tile's extent: such
    cells hold nothing."""

    shape: tuple[int, ...]
    dims: tuple[tuple[Digit, ...], ...]
    copies: tuple[Digit, ...] = ()

    def __post_init__(self) -> None:
        dims = tuple(tuple(d for d in digits if d.size > 1) for digits in self.dims)
        copies = tuple(sorted((d for d in self.copies if d.size > 1), key=lambda d: d.stride))
        object.__setattr__(self, "dims", dims)
        object.__setattr__(self, "copies", copies)

    @property
    def slots(self) -> int:
        """Registers a thread."""
        return math.prod(d.size for digits in self.dims for d in digits if d.place == "slot")

    def padded(self, dim: int) -> bool:
        return math.prod(d.size for d in self.dims[dim]) != self.shape[dim]

    def index(self, dim: int, where: e.Expr, register: e.Expr) -> e.Expr:
        """The element's index along a dimension, of a thread and a register."""
        total, weight = a.const(0), 1
        for digit in self.dims[dim]:
            source = where if digit.place == "thread" else register
            total = a.add(total, a.mul(a.digit(source, digit.stride, digit.size), weight))
            weight *= digit.size
        return total

    def owner(self, where: e.Expr) -> e.Expr:
        """True in one of the threads that hold the same values."""
        return a.every(*(a.equal(a.digit(where, d.stride, d.size), 0) for d in self.copies if d.size > 1))

    def project(self, kept: Sequence[int]) -> "Layout":
        """Of the dimensions kept, in the order given; every thread that held a row holds its value."""
        copies = list(self.copies)
        for dim, digits in enumerate(self.dims):
            if dim not in kept:
                copies += [d for d in digits if d.place == "thread"]
        strides = sorted(d.stride for dim in kept for d in self.dims[dim] if d.place == "slot" and d.size > 1)
        sizes = {d.stride: d.size for dim in kept for d in self.dims[dim] if d.place == "slot" and d.size > 1}
        renamed, width = {}, 1
        for stride in strides:
            renamed[stride] = width
            width *= sizes[stride]
        dims = tuple(
            tuple(
                d if d.place == "thread" else slot(d.size, renamed[d.stride])
                for d in self.dims[dim]
                if d.size > 1
            )
            for dim in kept
        )
        return Layout(tuple(self.shape[dim] for dim in kept), dims, tuple(copies))

    def covers(self, dim: int, other: "Layout", other_dim: int) -> bool:
        """Do both spread this dimension over threads and registers in the same steps?"""
        mine = [
            (d.size, d.place, d.stride if d.place == "thread" else 0) for d in self.dims[dim] if d.size > 1
        ]
        theirs = [
            (d.size, d.place, d.stride if d.place == "thread" else 0)
            for d in other.dims[other_dim]
            if d.size > 1
        ]
        return mine == theirs and self.shape[dim] == other.shape[other_dim]

    def register(self, dim: int, other: "Layout", other_dim: int, register: e.Expr) -> e.Expr:
        """What this dimension adds to my register number, where the other layout (which covers it) is at `register`."""
        total = a.const(0)
        mine = [d for d in self.dims[dim] if d.size > 1]
        theirs = [d for d in other.dims[other_dim] if d.size > 1]
        for here, there in zip(mine, theirs, strict=True):
            if here.place == "slot":
                total = a.add(total, a.mul(a.digit(register, there.stride, there.size), here.stride))
        return total

    def lanes(self, dim: int) -> list[int]:
        """Distances in threads between the holders of one row along a dimension, powers of two."""
        out = []
        for d in self.dims[dim]:
            if d.place == "thread":
                out += [d.stride << bit for bit in range(d.size.bit_length() - 1)]
        return out

    def cells(self, threads: int) -> np.ndarray:
        """[threads, slots, rank]: the element in each register; what checks enumerate."""
        t, r = np.meshgrid(np.arange(threads), np.arange(self.slots), indexing="ij")
        out = []
        for digits in self.dims:
            total, weight = np.zeros_like(t), 1
            for d in digits:
                total = total + ((t if d.place == "thread" else r) // d.stride % d.size) * weight
                weight *= d.size
            out.append(total)
        return np.stack(out, -1)

    def check(self, threads: int) -> None:
        """Each element has a holder, and two registers of one thread hold different elements."""
        cells = self.cells(threads)
        for one in (0, threads - 1):
            assert len({tuple(x) for x in cells[one]}) == self.slots, "two registers hold one element"
        inside = (cells < np.array(self.shape)).all(-1)
        held = {tuple(x) for x in cells[inside]}
        assert len(held) == math.prod(self.shape), "an element has no register"


def accumulator(rows: int, columns: int, groups: int) -> Layout:
    """Of wgmma m64nN (PTX ISA, 9.7.15.5.1.1), `groups` warpgroups below one another, each with rows / groups rows.
    The same map is that of an A operand of 16-bit elements in registers."""
    blocks = rows // 64 // groups
    return Layout(
        (rows, columns),
        (
            (thread(8, 4), slot(2, 2), thread(4, 32), slot(blocks, columns // 2), thread(groups, 128)),
            (slot(2, 1), thread(4, 1), slot(columns // 8, 4)),
        ),
    )


def beside(rows: int, columns: int, groups: int) -> Layout:
    """Accumulators of warpgroups that share 64 rows and split the columns."""
    each = columns // groups
    return Layout(
        (rows, columns),
        (
            (thread(8, 4), slot(2, 2), thread(4, 32), slot(rows // 64, each // 2)),
            (slot(2, 1), thread(4, 1), slot(each // 8, 4), thread(groups, 128)),
        ),
    )


def warp_tiles(rows: int, columns: int, down: int, across: int) -> Layout:
    """Accumulators of mma m16n8 (PTX ISA, 9.7.14.5.8) of so many warps below and beside one another. With one warp across it
    is also the map of an A operand of 16-bit elements in registers."""
    deep, wide = rows // down, columns // across
    return Layout(
        (rows, columns),
        (
            (thread(8, 4), slot(2, 2), slot(deep // 16, wide // 2), thread(down, 32)),
            (slot(2, 1), thread(4, 1), slot(wide // 8, 4), thread(across, 32 * down)),
        ),
    )


def by_warps(rows: int, columns: int, threads: int) -> Layout:
    """Warps share out the rows, lanes the columns: the same rows in the same warp whatever the columns."""
    warps = threads // 32
    deep, wide = -(-rows // warps), -(-columns // 32)
    return Layout((rows, columns), ((thread(warps, 32), slot(deep, wide)), (thread(32, 1), slot(wide, 1))))


def spread(shape: tuple[int, ...], threads: int, vector: int) -> Layout:
    """Vectors along the last dimension, then lanes of a warp, then warps over rows where there are enough of them."""
    inner = shape[-1]
    while vector > 1 and inner % vector:
        vector //= 2
    warps, outer = threads // 32, math.prod(shape[:-1])
    across = 32 if outer >= warps else threads
    across = min(across, _power_up(-(-inner // vector)))
    last = [slot(vector, 1), thread(across, 1)]
    width = vector
    last.append(slot(-(-inner // (vector * across)), width))
    width *= last[-1].size
    left, step = threads // across, across
    dims: list[tuple[Digit, ...]] = []
    for extent in reversed(shape[:-1]):
        take = min(left, _power_down(extent))
        rest = slot(-(-extent // take), width)
        dims.append((thread(take, step), rest))
        left, step, width = left // take, step * take, width * rest.size
    copies = (thread(left, step),) if left > 1 else ()
    return Layout(shape, (*reversed(dims), tuple(last)), copies)


def _power_up(x: int) -> int:
    return 1 << max(x - 1, 0).bit_length()


def _power_down(x: int) -> int:
    return 1 << (x.bit_length() - 1)
