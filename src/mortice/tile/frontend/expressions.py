"""Python expressions of a kernel. What is known when the kernel is made stays a Python value; the rest becomes IR."""

import ast
import builtins
import operator
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from mortice.tile import language
from mortice.tile.dtypes import DType, boolean
from mortice.tile.frontend import views
from mortice.tile.frontend.state import Box, Slice, State, describe, full, lift, minus
from mortice.tile.ir import build
from mortice.tile.ir import expr as e

OPERATORS: dict[type, tuple[str, Callable]] = {
    ast.Add: ("add", operator.add), ast.Sub: ("sub", operator.sub), ast.Mult: ("mul", operator.mul),
    ast.Div: ("div", operator.truediv), ast.FloorDiv: ("floordiv", operator.floordiv), ast.Mod: ("mod", operator.mod),
    ast.BitAnd: ("and", operator.and_), ast.BitOr: ("or", operator.or_), ast.BitXor: ("xor", operator.xor),
    ast.LShift: ("shl", operator.lshift), ast.RShift: ("shr", operator.rshift),
    ast.Lt: ("lt", operator.lt), ast.LtE: ("le", operator.le), ast.Gt: ("gt", operator.gt), ast.GtE: ("ge", operator.ge),
    ast.Eq: ("eq", operator.eq), ast.NotEq: ("ne", operator.ne),
    ast.Is: ("is", operator.is_), ast.IsNot: ("is not", operator.is_not),
    ast.In: ("in", lambda a, b: a in b), ast.NotIn: ("not in", lambda a, b: a not in b),
    ast.Pow: ("pow", operator.pow),
}  # fmt: skip
PREFIXES: dict[type, tuple[str, Callable]] = {
    ast.USub: ("neg", operator.neg), ast.Not: ("not", operator.not_), ast.Invert: ("invert", operator.invert),
}  # fmt: skip
IR_VALUES = (e.Expr, e.Buffer, Box)


def evaluate(state: State, node: ast.expr) -> Any:  # noqa: C901 - a table of all expressions
    """An IR expression, a buffer or box, or a plain Python value."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return _name(state, node, name)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(evaluate(state, item) for item in items)
        case ast.BinOp():
            return _binary(
                state, node, type(node.op), evaluate(state, node.left), evaluate(state, node.right)
            )
        case ast.Compare():
            return _comparison(state, node)
        case ast.BoolOp():
            return _logical(state, node)
        case ast.UnaryOp():
            return _unary(state, node)
        case ast.IfExp():
            condition = evaluate(state, node.test)
            if not isinstance(condition, e.Expr):
                return evaluate(state, node.body if condition else node.orelse)
            then, other = (lift(state, evaluate(state, x), x, "if-else") for x in (node.body, node.orelse))
            return build.select(as_condition(condition), then, other, state.span(node))
        case ast.Attribute():
            return _attribute(state, node)
        case ast.Subscript():
            return _subscript(state, node)
        case ast.Call():
            return state.call(state, node)
        case ast.JoinedStr():
            state.fail(
                node, "f-string", "is not understood in a kernel", "pass the values to print one by one"
            )
    state.fail(
        node, type(node).__name__, "is not understood in a kernel", "write it with operators and loops"
    )


def as_condition(x: e.Expr) -> e.Expr:
    if x.dtype == boolean:
        return x
    return build.binary("ne", x, e.Const(x.dtype, 0.0 if x.dtype.is_float else 0), x.span)


def element(state: State, node: ast.expr, what: str) -> tuple[e.Buffer, tuple[e.Expr, ...]]:
    """The target `A[i, j]` of a store or an atomic operation."""
    if not isinstance(node, ast.Subscript):
        state.fail(node, what, "its target is no element", "write it as A[i, j]")
    buffer = evaluate(state, node.value)
    if not isinstance(buffer, e.Buffer):
        state.fail(node, what, f"{describe(buffer)} is not indexed", "only tensors and tiles are")
    items = _indices(state, node, buffer)
    if not all(isinstance(item, e.Expr) for item in items):
        state.fail(node, what, "its target is a box", "use tile.copy or tile.fill for boxes")
    return buffer, tuple(item for item in items if isinstance(item, e.Expr))


def _name(state: State, node: ast.Name, name: str) -> Any:
    if name in state.names:
        return state.names[name].value
    if name in state.source.names:
        return state.source.names[name]
    if hasattr(builtins, name):
        return getattr(builtins, name)
    state.fail(node, name, "has no value here", "give it one before, outside the if or loop that ended")


def _binary(state: State, node: ast.expr, kind: type, left: Any, right: Any) -> Any:
    if kind not in OPERATORS:
        state.fail(node, kind.__name__, "is not understood in a kernel", "use tile.gemm for matrix products")
    op, plain = OPERATORS[kind]
    if not isinstance(left, IR_VALUES) and not isinstance(right, IR_VALUES):
        try:
            return plain(left, right)
        except (TypeError, ZeroDivisionError, ValueError) as error:
            state.fail(node, op, str(error), "these are values known when the kernel is made")
    if op in ("is", "is not"):
        return plain(left, right)
    if op == "pow":
        if right == 2:
            return build.binary("mul", lift(state, left, node), lift(state, left, node), state.span(node))
        state.fail(
            node, "**", f"the exponent is {describe(right)}", "only squares; else use exp2(y * log2(x))"
        )
    if op in ("in", "not in"):
        state.fail(node, op, "one side is known only at run time", "compare with == and or")
    a, b = lift(state, left, node, op), lift(state, right, node, op)
    return build.binary(op, a, b, state.span(node))


def _comparison(state: State, node: ast.Compare) -> Any:
    result: Any = True
    left = evaluate(state, node.left)
    for kind, right_node in zip(node.ops, node.comparators, strict=True):
        right = evaluate(state, right_node)
        this = _binary(state, node, type(kind), left, right)
        result = this if result is True else _both(state, node, result, this)
        left = right
    return result


def _both(state: State, node: ast.expr, a: Any, b: Any) -> Any:
    if not isinstance(a, e.Expr) and not isinstance(b, e.Expr):
        return a and b
    return build.binary(
        "and", as_condition(lift(state, a, node)), as_condition(lift(state, b, node)), state.span(node)
    )


def _logical(state: State, node: ast.BoolOp) -> Any:
    is_and = isinstance(node.op, ast.And)
    result: Any = is_and
    for item in node.values:
        value = evaluate(state, item)
        if not isinstance(value, e.Expr):
            if bool(value) != is_and:
                return value  # decided when the kernel is made
            result = value if not isinstance(result, e.Expr) else result
        elif isinstance(result, e.Expr):
            result = build.binary(
                "and" if is_and else "or", as_condition(result), as_condition(value), state.span(node)
            )
        else:
            result = as_condition(value)
    return result


def _unary(state: State, node: ast.UnaryOp) -> Any:
    value = evaluate(state, node.operand)
    if isinstance(node.op, ast.UAdd):
        return value
    op, plain = PREFIXES[type(node.op)]
    if not isinstance(value, IR_VALUES):
        return plain(value)
    x = lift(state, value, node, op)
    return build.unary(op, as_condition(x) if op == "not" else x, state.span(node))


def _attribute(state: State, node: ast.Attribute) -> Any:
    value = evaluate(state, node.value)
    if isinstance(value, e.Buffer):
        match node.attr:
            case "shape":
                return tuple(int(x.value) if isinstance(x, e.Const) else x for x in value.shape)
            case "dtype":
                return value.dtype
            case "T":
                value = full(value)
    if isinstance(value, Box) and node.attr == "T":
        return Box(value.buffer, value.items, not value.transposed)
    if isinstance(value, IR_VALUES):
        state.fail(
            node, f".{node.attr}", f"{describe(value)} has no such attribute", "there are shape, dtype and T"
        )
    try:
        return getattr(value, node.attr)
    except AttributeError as error:
        near = get_close_matches(node.attr, dir(value), 1)
        remedy = f"is it {near[0]}?" if near else "see mortice.tile.language for what there is"
        state.fail(node, f".{node.attr}", str(error), remedy)


def _subscript(state: State, node: ast.Subscript) -> Any:
    value = evaluate(state, node.value)
    if isinstance(value, e.Buffer):
        items = _indices(state, node, value)
        if any(isinstance(item, Slice) for item in items):
            return Box(value, items)
        at = tuple(item for item in items if isinstance(item, e.Expr))
        if value.name in state.views:
            return views.load(state, value, at, node)
        return build.load(value, at, state.span(node))
    if isinstance(value, IR_VALUES):
        state.fail(node, "[]", f"{describe(value)} is not indexed", "index the tensor itself")
    key = evaluate(state, node.slice)
    if isinstance(key, e.Expr):
        state.fail(
            node, "[]", "a Python value is indexed with a run-time number", "loop over it with tile.unroll"
        )
    try:
        return value[key]
    except (LookupError, TypeError) as error:
        state.fail(node, "[]", str(error), "this is a value known when the kernel is made")


def _indices(state: State, node: ast.Subscript, buffer: e.Buffer) -> tuple[Slice | e.Expr, ...]:
    nodes = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if len(nodes) != len(buffer.shape):
        rank = len(buffer.shape)
        state.fail(
            node,
            buffer.name,
            f"{len(nodes)} indices for {describe(buffer)}",
            f"give {rank}; `:` takes a whole dimension",
        )
    items: list[Slice | e.Expr] = []
    for item, extent in zip(nodes, buffer.shape, strict=True):
        if not isinstance(item, ast.Slice):
            index = lift(state, evaluate(state, item), item, "index")
            if not index.dtype.is_integer:
                state.fail(item, "index", f"it is {describe(index)}", "cast it to i32")
            inside = (
                not isinstance(extent, e.Const)
                or not isinstance(index, e.Const)
                or 0 <= index.value < extent.value
            )
            if buffer.on_chip and isinstance(index, e.Const) and not inside:
                state.fail(
                    item, "index", f"{index.value} lies outside {describe(buffer)}", "indices count from 0"
                )
            items.append(index)
            continue
        if item.step is not None:
            state.fail(item, "slice", "it has a step", "copy element by element in a parallel loop")
        start = lift(state, evaluate(state, item.lower), item) if item.lower else e.const(0)
        if item.upper is not None:
            items.append(Slice(start, minus(lift(state, evaluate(state, item.upper), item), start)))
        else:
            whole = item.lower is None
            items.append(Slice(start, extent if whole else None))
    return tuple(items)


def is_construct(value: Any, name: str) -> bool:
    return getattr(value, "construct", None) == name and value is getattr(language, name, None)


def is_dtype(value: Any) -> bool:
    return isinstance(value, DType)
