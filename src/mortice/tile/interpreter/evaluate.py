"""Values of expressions and boxes. In a parallel loop a value is an array over the lanes, and a mask says which
iterations are alive; loads of the others never happen."""

import math
from typing import Any

import numpy as np

from mortice.tile.diagnostics import CheckError, Span, UnsupportedError
from mortice.tile.interpreter.formats import NATIVE, arithmetic, encode, rounded
from mortice.tile.interpreter.storage import Race, Tensor, Tile
from mortice.tile.ir import expr as e

BINARY: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "floordiv": np.floor_divide,
    "mod": np.mod, "min": np.fmin, "max": np.fmax, "xor": np.bitwise_xor, "shl": np.left_shift,
    "shr": np.right_shift, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal, "and": np.bitwise_and, "or": np.bitwise_or,
}  # fmt: skip
MATH: dict[str, Any] = {
    "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2, "sqrt": np.sqrt, "tanh": np.tanh, "sin": np.sin,
    "cos": np.cos, "abs": np.abs, "floor": np.floor, "ceil": np.ceil, "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "erf": np.vectorize(math.erf, otypes=[np.float64]),
}  # fmt: skip


class Evaluator:
    def __init__(self, memory: dict[str, Tensor | Tile], names: dict[str, Any]) -> None:
        self.memory, self.names = memory, names
        self.lanes: tuple[int, ...] | None = None
        self.mask: np.ndarray | None = None
        self.races: dict[str, Race] = {}
        self.block_id = -1

    def value(self, x: e.Expr) -> Any:  # noqa: C901 - a table of all expressions
        match x:
            case e.Const():
                return arithmetic(x.dtype)(x.value)
            case e.Var():
                return self.names[x.name]
            case e.Binary():
                return self.binary(x)
            case e.Unary(op="neg"):
                return np.negative(self.value(x.value))
            case e.Unary(op="not"):
                return np.logical_not(self.value(x.value))
            case e.Unary():
                return np.invert(self.value(x.value))
            case e.Math():
                value = self.value(x.value)
                return np.asarray(MATH[x.name](value)).astype(arithmetic(x.dtype))[()]
            case e.Cast():
                return rounded(np.asarray(self.value(x.value)), x.to)[()]
            case e.Bitcast():
                bits = np.asarray(encode(np.asarray(self.value(x.value)), x.value.dtype))
                return bits.view(NATIVE[x.to])[()]
            case e.Select():
                return self.select(x)
            case e.Load():
                return self.load(x)
            case e.Call():
                problem = "the interpreter has no threads of a warp"
                raise UnsupportedError(x.span, x.name, problem, "run it on a GPU or the simulator")
        raise TypeError(f"no value of {type(x).__name__}")

    def binary(self, x: e.Binary) -> Any:
        left = self.value(x.left)
        if x.op in ("and", "or") and np.ndim(left) == 0 and x.dtype.kind == "b":  # lazy, as in Python
            return left if bool(left) == (x.op == "or") else self.value(x.right)
        if x.op == "and" and x.dtype.kind == "b":
            outer, self.mask = self.mask, left if self.mask is None else self.mask & left
            right = self.value(x.right)
            self.mask = outer
            return left & right
        right = self.value(x.right)
        kind: Any = arithmetic(x.left.dtype if x.dtype.kind == "b" else x.dtype)
        if x.dtype.kind != "b" or x.left.dtype.is_float or x.right.dtype.is_float:
            kind = (
                np.result_type(kind, np.float32)
                if x.right.dtype.is_float and not x.left.dtype.is_float
                else kind
            )
            left, right = np.asarray(left).astype(kind)[()], np.asarray(right).astype(kind)[()]
        return BINARY[x.op](left, right)

    def select(self, x: e.Select) -> Any:
        condition = self.value(x.condition)
        if np.ndim(condition) == 0:
            return self.value(x.then if condition else x.otherwise)
        outer = self.mask
        live = np.broadcast_to(condition, self.lanes or ())
        self.mask = live if outer is None else live & outer
        then = self.value(x.then)
        self.mask = ~live if outer is None else ~live & outer
        otherwise = self.value(x.otherwise)
        self.mask = outer
        return np.where(condition, then, otherwise)

    def load(self, x: e.Load) -> Any:
        index, _, inside = self.placed(x.buffer, x.indices, np.zeros((), arithmetic(x.dtype)), x.span)
        at = tuple(axis[inside] for axis in index)
        memory = self.memory[x.buffer.name]
        if x.buffer.name in self.races and at[0].size:
            self.races[x.buffer.name].read(at, self.lane_ids()[inside], x.span)
        found = (
            memory.load(at, self.block_id, x.span) if isinstance(memory, Tensor) else memory.load(at, x.span)
        )
        values: np.ndarray = np.zeros(inside.shape, arithmetic(x.dtype))
        values[inside] = found
        return values.reshape(self.lanes)[()] if self.lanes is not None else values[0]

    def store(self, buffer: e.Buffer, indices: tuple[e.Expr, ...], value: Any, span: Span) -> None:
        index, values, inside = self.placed(buffer, indices, value, span)
        at, values = tuple(axis[inside] for axis in index), values[inside]
        if buffer.name in self.races and values.size:
            self.races[buffer.name].write(at, self.lane_ids()[inside], span)
        memory = self.memory[buffer.name]
        if isinstance(memory, Tensor):
            memory.store(at, values, self.block_id, span)
        else:
            memory.store(at, values)

    def placed(
        self, buffer: e.Buffer, indices: tuple[e.Expr, ...], value: Any, span: Span
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
        """Flat index arrays, values and which are alive and inside. Outside a tile is an error."""
        shape = self.lanes if self.lanes is not None else (1,)
        memory = self.memory[buffer.name]
        index = [np.broadcast_to(np.asarray(self.value(i)), shape).reshape(-1) for i in indices]
        live = np.broadcast_to(True if self.mask is None else self.mask, shape).reshape(-1)
        limits = self.shape_of(buffer.name)
        if isinstance(memory, Tile) and memory.lanes:
            own = [axis.reshape(-1) for axis in np.indices(memory.lanes)]
            index = own + index
        inside = live.copy()
        for axis, limit in zip(index, limits, strict=True):
            inside &= (axis >= 0) & (axis < limit)
        if isinstance(memory, Tile) and (live & ~inside).any():
            wrong = int(np.argmax(live & ~inside))
            found = [int(axis[wrong]) for axis in index][len(memory.lanes) :]
            problem = f"index {found} lies outside {list(buffer.extents)}"
            raise CheckError(span, buffer.name, problem, "stay within the tile")
        return tuple(index), np.broadcast_to(np.asarray(value), shape).reshape(-1), inside

    def shape_of(self, name: str) -> tuple[int, ...]:
        memory = self.memory[name]
        return memory.raw.shape if isinstance(memory, Tensor) else memory.data.shape

    def lane_ids(self) -> np.ndarray:
        return np.arange(int(np.prod(self.lanes or (1,))))

    def extents(self, region: e.Region) -> tuple[int, ...]:
        return tuple(int(self.value(region.extents[i])) for i in region.kept)

    def read(self, region: e.Region, pad: Any = 0) -> np.ndarray:
        """A box, with `pad` outside a tensor; outside a tile is an error."""
        box, inner, shape = self.box(region)
        values: np.ndarray = np.full(shape, pad, arithmetic(region.buffer.dtype))
        memory = self.memory[region.buffer.name]
        found = (
            memory.load(box, self.block_id, region.span)
            if isinstance(memory, Tensor)
            else memory.load(box, region.span)
        )
        values[inner] = found
        return values.reshape(self.extents(region))

    def write(self, region: e.Region, values: np.ndarray, span: Span) -> None:
        """A box; what lies outside a tensor is dropped."""
        box, inner, shape = self.box(region)
        part = np.broadcast_to(values, self.extents(region)).reshape(shape)[inner]
        memory = self.memory[region.buffer.name]
        if isinstance(memory, Tensor):
            memory.store(box, part, self.block_id, span)
        else:
            memory.store(box, part)

    def box(self, region: e.Region) -> tuple[Any, Any, tuple[int, ...]]:
        """Slices of the buffer, slices of the box, and the box's shape with dropped dimensions as 1."""
        limits, outer, inner, shape = self.shape_of(region.buffer.name), [], [], []
        for offset, extent, limit in zip(region.offsets, region.extents, limits, strict=True):
            start, width = int(self.value(offset)), int(self.value(extent))
            if region.buffer.on_chip and (start < 0 or start + width > limit):
                problem = (
                    f"the box from {start} to {start + width} lies outside {list(region.buffer.extents)}"
                )
                raise CheckError(region.span, region.buffer.name, problem, "stay within the tile")
            low = min(max(start, 0), limit)
            high = max(min(start + width, limit), low)
            outer.append(slice(low, high))
            inner.append(slice(low - start, low - start + high - low) if high > low else slice(0, 0))
            shape.append(width)
        return tuple(outer), tuple(inner), tuple(shape)

    def held(self, value: Any, var: e.Var) -> Any:
        return np.asarray(value).astype(arithmetic(var.dtype))[()]

    def uniform(self, value: Any, span: Span, operator: str) -> bool:
        if np.ndim(value):
            raise CheckError(
                span, operator, "its condition differs between iterations", "use a for loop, or an if inside"
            )
        return bool(value)
