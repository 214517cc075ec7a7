"""Short names for making integer expressions and instructions."""

from mortice.tile.diagnostics import NOWHERE, Span
from mortice.tile.dtypes import boolean
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s

Number = e.Expr | int


def const(value: int) -> e.Expr:
    return e.const(value)


__all__ = ["add", "box", "call", "const", "digit", "equal", "every", "less", "mod", "mul", "op", "sub"]


def _x(value: Number) -> e.Expr:
    return e.const(value) if isinstance(value, int) else value


def add(*terms: Number) -> e.Expr:
    total, fixed = _x(0), 0
    for term in map(_x, terms):
        if isinstance(term, e.Binary) and term.op == "add" and isinstance(term.right, e.Const):
            fixed, term = fixed + int(term.right.value), term.left  # constants gather at the end
        if isinstance(term, e.Const):
            fixed += int(term.value)
        else:
            total = term if isinstance(total, e.Const) else build.binary("add", total, term)
    return build.binary("add", total, _x(fixed))


def sub(left: Number, right: Number) -> e.Expr:
    return build.binary("sub", _x(left), _x(right))


def mul(left: Number, right: Number) -> e.Expr:
    return build.binary("mul", _x(left), _x(right))


def mod(left: Number, right: Number) -> e.Expr:
    return build.binary("mod", _x(left), _x(right))


def less(left: Number, right: Number) -> e.Expr:
    return build.binary("lt", _x(left), _x(right))


def equal(left: Number, right: Number) -> e.Expr:
    return build.binary("eq", _x(left), _x(right))


def every(*conditions: e.Expr) -> e.Expr:
    total: e.Expr = e.Const(boolean, True)
    for condition in conditions:
        total = build.binary("and", total, condition)
    return total


def digit(number: e.Expr, stride: int, size: int) -> e.Expr:
    """(number // stride) % size of a number that is not negative; shifts where they can be."""
    if size == 1:
        return const(0)
    if stride & (stride - 1) == 0 and size & (size - 1) == 0:
        shifted = build.binary("shr", number, const(stride.bit_length() - 1)) if stride > 1 else number
        return build.binary("and", shifted, const(size - 1))
    return build.binary("mod", build.binary("floordiv", number, const(stride)), const(size))


def call(name: str, *args: e.Expr) -> e.Expr:
    return build.call(name, args)


def op(name: str, *operands: e.Expr | e.Region, span: Span = NOWHERE, **attributes: int | str | bool) -> s.Op:
    return s.Op(name, operands, tuple(attributes.items()), span=span)


def box(buffer: e.Buffer, offset: Number, extent: int | None = None) -> e.Region:
    """An address `buffer[o]`, or registers `buffer[o::n]`."""
    if extent is None:
        return e.Region(buffer, (_x(offset),), (const(1),), ())
    return e.Region(buffer, (_x(offset),), (const(extent),), (0,))
