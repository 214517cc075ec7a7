"""Prefix folds of fragments. An axis is digits of registers and threads, the fastest first; digit by digit, what the blocks
before one's own sum up to is added: from registers, from lanes by exchange, from warps through shared memory."""

import itertools
from dataclasses import dataclass

from mortice.tile.dtypes import u32
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu.context import Context
from mortice.tile.passes.gpu.elementwise import register
from mortice.tile.passes.gpu.fragments import Digit, Layout, thread

FOLD = {"sum": "add", "max": "max"}


def crosses_warps(layout: Layout, axis: int) -> bool:
    return any(d.place == "thread" and d.stride * d.size > 32 for d in layout.dims[axis])


def scan(cx: Context, x: s.Scan) -> None:
    source, target = x.source.buffer, x.target.buffer
    layout = cx.layouts[source.name]
    if layout != cx.layouts[target.name]:
        cx.refuse(
            x, "scan", f"{source.name} and {target.name} lie differently in registers", "scan whole fragments"
        )
    there = cx.registers[target.name]
    start = build.identity(x.op, there.dtype)
    for i in range(layout.slots):
        value = register(cx, source, a.const(i))
        if layout.padded(x.axis):
            inside = a.less(layout.index(x.axis, cx.thread, a.const(i)), layout.shape[x.axis])
            value = build.select(inside, value, start)
        cx.emit(s.Store(there, (a.const(i),), value, span=x.span))
    below: list[Digit] = []
    for digit in itertools.chain.from_iterable(_parts(d) for d in layout.dims[x.axis]):
        _Step(cx, x, layout, there, tuple(below), digit).take()
        below.append(digit)
    with cx.unroll(layout.slots) as slot:
        cx.emit(s.Store(there, (slot,), cx.rounded(build.load(there, (slot,)), target.dtype)))


def _parts(d: Digit) -> list[Digit]:
    """A digit that reaches over a warp's lanes as its lanes and its warps."""
    if d.place == "thread" and d.stride < 32 < d.stride * d.size:
        lanes = 32 // d.stride
        return [thread(lanes, d.stride), thread(d.size // lanes, 32)]
    return [d]


@dataclass(frozen=True, slots=True)
class _Step:
    """Of one digit: elements that agree in all above it and differ in it or in those below are one run."""

    cx: Context
    x: s.Scan
    layout: Layout
    there: e.Buffer
    below: tuple[Digit, ...]
    digit: Digit

    def take(self) -> None:
        slots = [d for d in self.below if d.place == "slot"]
        inner = [sum(c * d.stride for c, d in zip(cs, slots, strict=True)) for cs in _all(slots)]
        mine = [d for d in (*slots, self.digit) if d.place == "slot"]
        rest = [i for i in range(self.layout.slots) if all(i // d.stride % d.size == 0 for d in mine)]
        for base in rest:
            if self.digit.place == "slot":
                self._registers(base, inner)
            else:
                self._threads(base, inner)

    def _registers(self, base: int, inner: list[int]) -> None:
        order = range(self.digit.size)
        steps = list(order)[::-1] if self.x.reverse else list(order)
        for before, now in itertools.pairwise(steps):
            total = self._total(base + before * self.digit.stride)
            self._add(total, [base + now * self.digit.stride + i for i in inner], None)

    def _threads(self, base: int, inner: list[int]) -> None:
        cx, d = self.cx, self.digit
        place = a.digit(cx.thread, d.stride, d.size)
        order = a.sub(d.size - 1, place) if self.x.reverse else place
        if d.stride >= 32:
            mine = self._total(base)
            self._put(mine)
            sum_before = cx.let("before", build.identity(self.x.op, self.there.dtype), mutable=True)
            for step in range(d.size - 1):
                from_ = d.size - 1 - step if self.x.reverse else step
                value = self._take(a.add(a.sub(cx.thread, a.mul(place, d.stride)), from_ * d.stride))
                joined = self._fold(sum_before, value)
                cx.emit(s.Assign(sum_before, build.select(a.less(step, order), joined, sum_before)))
            self._add(sum_before, [base + i for i in inner], build.binary("gt", order, a.const(0)))
            return
        total = cx.let("sum", self._total(base), mutable=True)
        lane, sign = a.call("lane"), -1 if self.x.reverse else 1
        width = 1
        while width < d.size:
            other = cx.let("other", a.call("shuffle", total, a.sub(lane, sign * width * d.stride)))
            far = build.binary("ge", order, a.const(width))
            cx.emit(s.Assign(total, build.select(far, self._fold(other, total), total)))
            width *= 2
        before = cx.let("before", a.call("shuffle", total, a.sub(lane, sign * d.stride)))
        self._add(before, [base + i for i in inner], build.binary("gt", order, a.const(0)))

    def _add(self, value: e.Expr, registers: list[int], where: e.Expr | None) -> None:
        for i in registers:
            old = build.load(self.there, (a.const(i),))
            new = self._fold(value, old)
            new = new if where is None else build.select(where, new, old)
            self.cx.emit(s.Store(self.there, (a.const(i),), new, span=self.x.span))

    def _fold(self, left: e.Expr, right: e.Expr) -> e.Expr:
        return build.binary(FOLD[self.x.op], left, right)

    def _total(self, base: int) -> e.Expr:
        """What the run of the digits below sums up to: the value at its end, wherever that lies."""
        cx, at = self.cx, base
        lanes, warps = a.call("lane"), cx.thread
        far = near = False
        for d in self.below:
            end = 0 if self.x.reverse else d.size - 1
            if d.place == "slot":
                at += end * d.stride
                continue
            moved = a.mul(a.sub(end, a.digit(cx.thread, d.stride, d.size)), d.stride)
            if d.stride >= 32:
                far, warps = True, a.add(warps, moved)
            else:
                near, lanes, warps = True, a.add(lanes, moved), a.add(warps, moved)
        value: e.Expr = cx.let("end", build.load(self.there, (a.const(at),)))
        if far:
            self._put(value)
            return self._take(warps)
        return cx.let("total", a.call("shuffle", value, lanes)) if near else value

    def _put(self, value: e.Expr) -> None:
        cx = self.cx
        word = cx.array("word", u32, 1)
        cx.sync()
        cx.emit(s.Store(word, (a.const(0),), build.bitcast(value, u32)))
        cx.op("store_shared", cx.address(a.add(a.mul(cx.thread, 4), cx.scratch)), a.box(word, 0, 1), bytes=4)
        cx.sync()

    def _take(self, thread_: e.Expr) -> e.Expr:
        cx = self.cx
        word = cx.array("word", u32, 1)
        cx.op("load_shared", a.box(word, 0, 1), cx.address(a.add(a.mul(thread_, 4), cx.scratch)), bytes=4)
        return cx.let("taken", build.bitcast(build.load(word, (a.const(0),)), self.there.dtype))


def _all(digits: list[Digit]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(d.size) for d in digits)))
