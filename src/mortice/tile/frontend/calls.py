"""Calls in a kernel: constructs of the language, casts, a few builtins, inlined functions, and plain Python on
values that are known when the kernel is made."""

import ast
import inspect
from typing import Any

from mortice.tile.dtypes import DType
from mortice.tile.frontend.expressions import IR_VALUES, evaluate
from mortice.tile.frontend.folds import fold, folded
from mortice.tile.frontend.operators import HANDLERS
from mortice.tile.frontend.state import State, describe, lift
from mortice.tile.frontend.threads import thread_level
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.language import ThreadConstruct

PLAIN_BUILTINS = (min, max, abs)


def call(state: State, node: ast.Call) -> Any:
    function = evaluate(state, node.func)
    if function is print:
        values = [evaluate(state, arg) for arg in node.args]
        label = " ".join(value for value in values if isinstance(value, str))
        shown = tuple(
            v if isinstance(v, e.Buffer) else lift(state, v, node) for v in values if not isinstance(v, str)
        )
        return state.emit(s.Print(label, shown, span=state.span(node)))
    if function is breakpoint:
        return state.emit(s.Breakpoint(span=state.span(node)))
    op = folded(function)
    if op is not None and (
        hasattr(function, "construct") or any(isinstance(x, ast.GeneratorExp) for x in node.args)
    ):
        return fold(state, node, op)
    args = [evaluate(state, arg) for arg in node.args]
    keywords = {item.arg: evaluate(state, item.value) for item in node.keywords if item.arg}
    if isinstance(function, ThreadConstruct):
        return thread_level(state, node, function.name, args, keywords)
    name = getattr(function, "construct", None)
    if name is not None:
        return _construct(state, node, function, name, args, keywords)
    if isinstance(function, DType):
        return _cast(state, node, function, args)
    if getattr(function, "tile_inline", False):
        return state.inline(state, node, function, args, keywords)
    known = not any(isinstance(x, IR_VALUES) for x in (*args, *keywords.values()))
    if function in PLAIN_BUILTINS and not known:
        return _builtin(state, node, function, args)
    if not known and getattr(function, "__name__", "") == "ceildiv":
        a, b = (lift(state, x, node, "ceildiv") for x in args)
        return build.ceildiv(a, b, state.span(node))
    if not known:
        label = getattr(function, "__name__", str(function))
        state.fail(
            node,
            label,
            "a plain function gets run-time values",
            "decorate it with @tile.inline, or use operators",
        )
    try:
        return function(*args, **keywords)
    except Exception as error:
        state.fail(
            node, getattr(function, "__name__", "call"), f"{type(error).__name__}: {error}", "mend the call"
        )


def _construct(
    state: State, node: ast.Call, function: Any, name: str, args: list[Any], keywords: dict[str, Any]
) -> Any:
    if name not in HANDLERS:
        state.fail(node, name, "it stands where a value is wanted", f"write `for ... in tile.{name}(...)`")
    try:
        bound = inspect.signature(function).bind(*args, **keywords)
    except TypeError as error:
        state.fail(node, name, str(error), f"its form is {form(function)}")
    bound.apply_defaults()
    return HANDLERS[name](state, node, bound.arguments)


def form(function: Any) -> str:
    """How a construct is written, without its types."""
    parameters = inspect.signature(function).parameters.values()
    names = ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters)
    return f"tile.{function.__name__}({names})"


def _cast(state: State, node: ast.Call, dtype: DType, args: list[Any]) -> Any:
    if len(args) != 1:
        state.fail(node, dtype.name, f"a cast gets one value, not {len(args)}", f"write {dtype.name}(x)")
    return build.cast(lift(state, args[0], node, dtype.name), dtype, state.span(node))


def _builtin(state: State, node: ast.Call, function: Any, args: list[Any]) -> e.Expr:
    span = state.span(node)
    values = [lift(state, arg, node, function.__name__) for arg in args]
    if function is abs:
        return build.math_call("abs", values[0], span)
    if len(values) < 2:
        state.fail(node, function.__name__, f"it got {describe(args[0])} alone", "use tile.reduce_* on tiles")
    result = values[0]
    for value in values[1:]:
        result = build.binary(function.__name__, result, value, span)
    return result
