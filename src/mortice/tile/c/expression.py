"""Expressions as C."""

import math
from collections.abc import Callable

from mortice.tile.c.names import CONVERTED, TYPES, loaded, name, stored, value
from mortice.tile.diagnostics import UnsupportedError
from mortice.tile.dtypes import boolean, f64, widened
from mortice.tile.ir import expr as e
from mortice.tile.passes.ranges import Ranges

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "xor": "^", "shl": "<<", "shr": ">>", "lt": "<", "le": "<=", "gt": ">",
    "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip
OURS = ("exp", "exp2", "sigmoid", "tanh", "rsqrt")  # of the prelude, for f32


class Expressions:
    """unguarded: accesses proven at run time by a check around the loop that is being written."""

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges
        self.unguarded: Callable[[e.Buffer, int, e.Expr], bool] = lambda buffer, axis, index: False

    def __call__(self, x: e.Expr) -> str:
        match x:
            case e.Const():
                return _constant(x)
            case e.Var():
                return name(x.name)
            case e.Binary():
                return self._binary(x)
            case e.Unary():
                return f"({ {'neg': '-', 'not': '!', 'invert': '~'}[x.op] }{self(x.value)})"
            case e.Math():
                return self._math(x)
            case e.Cast():
                inner = self(x.value)
                if x.to in CONVERTED:
                    return f"from_{x.to}(to_{x.to}((float)({inner})))"
                return f"(({value(x.to)})({TYPES[x.to]})({inner}))"
            case e.Bitcast():
                kind, source = TYPES[x.to], TYPES[x.value.dtype]
                return f"({{ {source} bits__ = {self(x.value)}; {kind} as__; memcpy(&as__, &bits__, sizeof as__); as__; }})"
            case e.Select():
                kind = value(x.dtype)
                return f"({self(x.condition)} ? ({kind})({self(x.then)}) : ({kind})({self(x.otherwise)}))"
            case e.Load():
                found = loaded(self.element(x.buffer, x.indices), x.buffer.dtype)
                guard = self.guard(x.buffer, x.indices, x.guards)
                return f"({guard} ? {found} : ({value(x.dtype)})0)" if guard else f"({found})"
            case e.Call():
                raise UnsupportedError(
                    x.span, x.name, "C has no threads of a warp", "run it on a GPU or the simulator"
                )
        raise TypeError(f"no C for {type(x).__name__}")

    def element(self, buffer: e.Buffer, indices: tuple[e.Expr, ...]) -> str:
        return f"{name(buffer.name)}[{self.offset(buffer, indices)}]"

    def offset(self, buffer: e.Buffer, indices: tuple[e.Expr, ...]) -> str:
        terms = [
            self(i) if stride == "1" else f"({self(i)}) * {stride}"
            for i, stride in zip(indices, strides(buffer), strict=True)
            if i != e.const(0)
        ]
        return " + ".join(terms) or "0"

    def guard(self, buffer: e.Buffer, indices: tuple[e.Expr, ...], guards: tuple[bool, ...] | None) -> str:
        """The condition under which an access may happen; empty if always."""
        parts = []
        for axis, (index, checked) in enumerate(zip(indices, guards or (True,) * len(indices), strict=True)):
            if checked and not self.unguarded(buffer, axis, index):
                text = self(index)
                low = self.ranges.of(index)[0]
                below = f"({text}) < {self(buffer.shape[axis])}"
                parts.append(below if low is not None and low >= 0 else f"({text}) >= 0 && {below}")
        return f"({' && '.join(parts)})" if parts else ""

    def store(self, buffer: e.Buffer, indices: tuple[e.Expr, ...], text: str) -> str:
        return f"{self.element(buffer, indices)} = {stored(text, buffer.dtype)};"

    def _binary(self, x: e.Binary) -> str:
        left, right = self(x.left), self(x.right)
        if x.op in ("and", "or"):
            sign = {"and": "&", "or": "|"}[x.op]
            return f"({left} {sign * 2 if x.dtype == boolean else sign} {right})"
        if x.op in ("min", "max"):
            kind = value(x.dtype)
            return f"{x.op.upper()}(({kind})({left}), ({kind})({right}))"
        if x.op in ("floordiv", "mod"):
            dividend, divisor = self.ranges.of(x.left)[0], self.ranges.of(x.right)[0]
            if dividend is not None and dividend >= 0 and divisor is not None and divisor > 0:
                return f"({left} {'/' if x.op == 'floordiv' else '%'} {right})"
            return f"{'floordiv' if x.op == 'floordiv' else 'floormod'}({left}, {right})"
        if x.dtype.is_float or (x.left.dtype.is_float or x.right.dtype.is_float):
            kind = value(
                x.dtype
                if x.dtype.is_float
                else widened(x.left.dtype if x.left.dtype.is_float else x.right.dtype)
            )
            left = left if x.left.dtype.is_float else f"({kind})({left})"
            right = right if x.right.dtype.is_float else f"({kind})({right})"
        return f"({left} {INFIX[x.op]} {right})"

    def _math(self, x: e.Math) -> str:
        inner = self(x.value)
        if x.dtype == f64:
            return {
                "rsqrt": f"(1.0 / sqrt({inner}))",
                "sigmoid": f"(1.0 / (1.0 + exp(-({inner}))))",
                "abs": f"fabs({inner})",
            }.get(x.name, f"{x.name}({inner})")
        if not x.dtype.is_float:
            return f"llabs({inner})"
        if x.name in OURS:
            return f"{x.name}_f32({inner})"
        return f"fabsf({inner})" if x.name == "abs" else f"{x.name}f({inner})"


def strides(buffer: e.Buffer) -> list[str]:
    """Of each dimension in elements: numbers on the chip, names of the function's head for tensors."""
    if not buffer.on_chip:
        if buffer.strides is not None and isinstance(buffer.strides[-1], e.Const):
            return [f"{name(buffer.name)}s{i}" for i in range(len(buffer.shape) - 1)] + ["1"]
        if buffer.strides is None and buffer.shape:
            return [f"{name(buffer.name)}s{i}" for i in range(len(buffer.shape) - 1)] + ["1"]
        return [f"{name(buffer.name)}s{i}" for i in range(len(buffer.shape))]
    out, width = [], 1
    for extent in reversed(buffer.extents):
        out.append(str(width))
        width *= extent
    return out[::-1]


def _constant(x: e.Const) -> str:
    if x.dtype == boolean:
        return str(int(x.value))
    if not x.dtype.is_float:
        return f"{x.value}" if abs(x.value) < 2**31 else f"INT64_C({x.value})"
    if math.isnan(x.value):
        return "NAN"
    if math.isinf(x.value):
        return "INFINITY" if x.value > 0 else "(-INFINITY)"
    return float(x.value).hex() + ("" if x.dtype == f64 else "f")
