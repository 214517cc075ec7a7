"""Constructors that type an expression and fold constants; every node is made here."""

import math
import operator
from collections.abc import Callable
from typing import Any

from mortice.tile.diagnostics import NOWHERE, Span
from mortice.tile.dtypes import DType, boolean, f32, f64, joined, widened
from mortice.tile.ir.expr import (
    COMPARISONS,
    Binary,
    Bitcast,
    Buffer,
    Call,
    Cast,
    Const,
    Expr,
    Load,
    Math,
    Select,
    Unary,
    const,
)
from mortice.tile.ir.thread import FUNCTIONS

FOLD: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "floordiv": operator.floordiv, "mod": operator.mod, "min": min, "max": max, "and": operator.and_,
    "or": operator.or_, "xor": operator.xor, "shl": operator.lshift, "shr": operator.rshift, "lt": operator.lt,
    "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip


PREFIX: dict[str, Callable[..., Any]] = {"neg": operator.neg, "not": operator.not_, "invert": operator.invert}


def binary(op: str, left: Expr, right: Expr, span: Span = NOWHERE) -> Expr:
    """Typed by `joined`; comparisons are bool, `div` of integers is f32. Integer constants take the other side's type."""
    if op == "div" and not left.dtype.is_float and not right.dtype.is_float:
        left, right = cast(left, f32, span), cast(right, f32, span)
    if isinstance(left, Const) and left.dtype.is_integer and right.dtype != boolean:
        left = _as(left, right.dtype)
    if isinstance(right, Const) and right.dtype.is_integer and left.dtype != boolean:
        right = _as(right, left.dtype)
    operands = joined(left.dtype, right.dtype)
    dtype = boolean if op in COMPARISONS else operands
    if (
        isinstance(left, Const)
        and isinstance(right, Const)
        and not _undefined(op, right)
        and not operands.is_float
    ):
        value = FOLD[op](left.value, right.value)
        return Const(dtype, bool(value) if dtype == boolean else value, span=span)
    return _identity(op, left, right) or Binary(dtype, op, left, right, span=span)


def unary(op: str, value: Expr, span: Span = NOWHERE) -> Expr:
    if isinstance(value, Const):
        return Const(value.dtype, PREFIX[op](value.value), span=span)
    return Unary(value.dtype, op, value, span=span)


def cast(value: Expr, to: DType, span: Span = NOWHERE) -> Expr:
    if value.dtype == to:
        return value
    if isinstance(value, Const) and to in (f32, f64) and not value.dtype.is_float:
        return Const(to, float(value.value), span=span)
    if isinstance(value, Const) and to.is_integer and to.bits >= 32 and value.dtype.is_integer:
        return Const(to, value.value, span=span)
    return Cast(widened(to), value, to, span=span)


def bitcast(value: Expr, to: DType, span: Span = NOWHERE) -> Expr:
    return Bitcast(to, value, to, span=span)


def math_call(name: str, value: Expr, span: Span = NOWHERE) -> Expr:
    """Of a float; an integer is made f32 first (but `abs` keeps it)."""
    if not value.dtype.is_float and name != "abs":
        value = cast(value, f32, span)
    return Math(value.dtype, name, value, span=span)


def select(condition: Expr, then: Expr, otherwise: Expr, span: Span = NOWHERE) -> Expr:
    if isinstance(condition, Const):
        return then if condition.value else otherwise
    dtype = joined(then.dtype, otherwise.dtype)
    return Select(dtype, condition, coerced(then, dtype), coerced(otherwise, dtype), span=span)


def load(
    buffer: Buffer, indices: tuple[Expr, ...], span: Span = NOWHERE, guards: tuple[bool, ...] | None = None
) -> Load:
    return Load(widened(buffer.dtype), buffer, indices, guards, span=span)


def call(name: str, args: tuple[Expr, ...], span: Span = NOWHERE) -> Call:
    """A function of `thread.FUNCTIONS`, typed by that table; KeyError for any other."""
    dtype = FUNCTIONS[name].dtype
    return Call(dtype if dtype is not None else args[0].dtype, name, args, span=span)


def coerced(value: Expr, to: DType) -> Expr:
    """The value as an element or scalar of type `to` (stores round by themselves, so narrow types stay)."""
    return value if value.dtype == widened(to) else cast(value, to, value.span)


def ceildiv(a: Expr, b: Expr, span: Span = NOWHERE) -> Expr:
    return binary("floordiv", binary("add", a, binary("sub", b, const(1)), span), b, span)


def _as(value: Const, dtype: DType) -> Const:
    return Const(dtype, float(value.value) if dtype.is_float else value.value, span=value.span)


def _undefined(op: str, right: Const) -> bool:
    return op in ("div", "floordiv", "mod") and right.value == 0


def _identity(op: str, left: Expr, right: Expr) -> Expr | None:
    """x + 0, x * 1, x // 1 and the like, on integers; (x * c) * d; and/or with a constant."""
    if left.dtype == boolean and right.dtype == boolean:
        for this, other in ((left, right), (right, left)):
            if isinstance(this, Const) and op in ("and", "or"):
                return other if bool(this.value) == (op == "and") else this
        return None
    if not (left.dtype.is_integer and right.dtype.is_integer):
        return None
    if isinstance(right, Const):
        if (op in ("add", "sub") and right.value == 0) or (op in ("mul", "floordiv") and right.value == 1):
            return left
        if (op == "mul" and right.value == 0) or (op == "mod" and right.value == 1):
            return right if right.value == 0 else Const(right.dtype, 0)
        if op == "add" and isinstance(left, Binary) and left.op == "add" and isinstance(left.right, Const):
            return binary("add", left.left, binary("add", left.right, right))
    if isinstance(left, Const) and (op == "add" or (op == "mul" and left.value in (0, 1))):
        return binary(op, right, left)
    return None


def identity(op: str, dtype: DType) -> Const:
    """What a fold of nothing gives."""
    if dtype == boolean:
        return Const(boolean, op == "all")
    if op == "sum":
        return Const(dtype, 0.0 if dtype.is_float else 0)
    far = math.inf if dtype.is_float else 2 ** (dtype.bits - 1) - 1
    return Const(dtype, far if op == "min" else -far)


def infinity(dtype: DType = f32) -> Const:
    return Const(dtype, math.inf)
