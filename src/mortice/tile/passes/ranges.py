"""Intervals of integer expressions: what a loop's bounds say of its variable, carried through arithmetic."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk

Interval = tuple[int | None, int | None]
ANY: Interval = (None, None)


@dataclass
class Ranges:
    """names: the interval of each; below: an expression that the name is always smaller than."""

    names: dict[str, Interval] = field(default_factory=dict)
    below: dict[str, e.Expr] = field(default_factory=dict)

    @contextmanager
    def loop(
        self, variables: tuple[e.Var, ...], stops: tuple[e.Expr, ...], start: e.Expr | None = None
    ) -> Iterator[None]:
        """Variables that count from start (0) up to, but not including, their stop."""
        for var, stop in zip(variables, stops, strict=True):
            low = self.of(start)[0] if start is not None else 0
            high = self.of(stop)[1]
            self.names[var.name] = (low, None if high is None else high - 1)
            self.below[var.name] = stop
        yield
        for var in variables:
            del self.names[var.name], self.below[var.name]

    def let(self, statement: s.Let) -> None:
        self.names[statement.var.name] = ANY if statement.mutable else self.of(statement.value)

    def of(self, x: e.Expr) -> Interval:
        match x:
            case e.Const():
                return (int(x.value), int(x.value)) if x.dtype.is_integer else ANY
            case e.Var():
                return self.names.get(x.name, ANY)
            case e.Binary():
                return self._binary(x.op, self.of(x.left), self.of(x.right))
            case e.Unary(op="neg"):
                low, high = self.of(x.value)
                return (None if high is None else -high, None if low is None else -low)
            case e.Select():
                a, b = self.of(x.then), self.of(x.otherwise)
                return (_least(a[0], b[0]), _most(a[1], b[1]))
            case e.Cast() if x.to.is_integer and x.value.dtype.is_integer:
                return self.of(x.value) if x.to.bits >= x.value.dtype.bits else ANY
        return ANY

    def within(self, x: e.Expr, extent: e.Expr) -> bool:
        """Is 0 <= x < extent certain?"""
        low, high = self.of(x)
        if low is None or low < 0:
            return False
        if isinstance(x, e.Var) and extent in _bounds(self.below.get(x.name)):
            return True
        limit = self.of(extent)[0]
        return high is not None and limit is not None and high < limit

    def _binary(self, op: str, a: Interval, b: Interval) -> Interval:
        (al, ah), (bl, bh) = a, b
        match op:
            case "add":
                return (_sum(al, bl), _sum(ah, bh))
            case "sub":
                return (_sum(al, None if bh is None else -bh), _sum(ah, None if bl is None else -bl))
            case "mul":
                if None not in (al, ah, bl, bh):
                    ends = [x * y for x in (al, ah) for y in (bl, bh)]  # type: ignore[operator]
                    return (min(ends), max(ends))
                return _signs(al, bl)
            case "floordiv" if bl is not None and bl > 0 and al is not None and al >= 0:
                return (0, None if ah is None else ah // bl)
            case "mod" if bl is not None and bl > 0:
                return (0, None if bh is None else bh - 1)
            case "min":
                low = None if al is None or bl is None else min(al, bl)
                highs = [x for x in (ah, bh) if x is not None]
                return (low, min(highs) if highs else None)
            case "max":
                lows = [x for x in (al, bl) if x is not None]
                return (max(lows) if lows else None, None if ah is None or bh is None else max(ah, bh))
            case "and" if bl is not None and bl >= 0 and bh is not None:
                return (0, bh)
            case "shr" if al is not None and al >= 0:
                return (0, ah)
        return ANY


def _bounds(x: e.Expr | None) -> Iterator[e.Expr]:
    """What a stop says its variable is below: itself, and each side of a minimum."""
    if x is not None:
        yield x
    if isinstance(x, e.Binary) and x.op == "min":
        yield from _bounds(x.left)
        yield from _bounds(x.right)


def dimensions(function: s.Function) -> Ranges:
    """Extents are at least 0; strides and scalars may be anything."""
    ranges = Ranges()
    for param in function.tensors:
        for extent in param.buffer.shape:
            if isinstance(extent, e.Var):
                ranges.names[extent.name] = (0, None)
    return ranges


def affine(x: e.Expr, variables: Mapping[str, object]) -> tuple[dict[str, int], e.Expr] | None:
    """x as sum(coefficient * variable) + rest, the rest free of the variables; None if it is not of that form."""
    match x:
        case e.Var() if x.name in variables:
            return {x.name: 1}, e.const(0)
        case e.Const() | e.Var():
            return {}, x
        case e.Binary(op="add" | "sub"):
            left, right = affine(x.left, variables), affine(x.right, variables)
            if left is None or right is None:
                return None
            sign = 1 if x.op == "add" else -1
            sums = dict(left[0])
            for name, factor in right[0].items():
                sums[name] = sums.get(name, 0) + sign * factor
            return sums, build.binary(x.op, left[1], right[1])
        case e.Binary(op="mul", right=e.Const(value=factor)) | e.Binary(op="mul", left=e.Const(value=factor)):
            inner = affine(x.left if isinstance(x.right, e.Const) else x.right, variables)
            if inner is None:
                return None
            return {n: c * int(factor) for n, c in inner[0].items()}, build.binary(
                "mul", inner[1], e.const(int(factor))
            )
    free = not any(name in variables for name in _names(x))
    return ({}, x) if free else None


def _names(x: e.Expr) -> Iterator[str]:
    for node in walk(x):
        if isinstance(node, e.Var):
            yield node.name
        if isinstance(node, e.Load):
            yield node.buffer.name


def _signs(a: int | None, b: int | None) -> Interval:
    return (0, None) if a is not None and b is not None and a >= 0 and b >= 0 else ANY


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _least(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else min(a, b)


def _most(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else max(a, b)
