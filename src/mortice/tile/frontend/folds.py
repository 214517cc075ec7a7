"""Folds over generators, `tile.sum(A[m, k] * B[k, n] for k in range(K))`: each becomes a variable and a loop before the
statement it stands in."""

import ast
import builtins
from typing import Any

from mortice.tile.dtypes import boolean, i32, index
from mortice.tile.frontend.expressions import as_condition, evaluate
from mortice.tile.frontend.state import State, describe, lift
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s

COMBINE = {"sum": "add", "max": "max", "min": "min", "any": "or", "all": "and"}


def folded(function: Any) -> str | None:
    """The name of the fold, if a function is one: `tile.sum` or Python's own `sum`."""
    name: str | None = getattr(function, "construct", None)
    plain = getattr(function, "__name__", "")
    if name is None and plain and getattr(builtins, plain, None) is function:
        name = plain
    return name if name in COMBINE else None


def fold(state: State, node: ast.Call, op: str) -> e.Expr:
    """Its loops run whether the expression around it needs the value or not; it may not stand in a while's condition."""
    if len(node.args) != 1 or node.keywords or not isinstance(node.args[0], ast.GeneratorExp):
        state.fail(
            node,
            op,
            "it gets no generator",
            f"write tile.{op}(value for k in range(n)), or reduce_{op} for tiles",
        )
    if not state.in_launch and not state.in_parallel:
        state.fail(node, op, "there is no loop around it", "put it inside tile.parallel or tile.grid")
    if state.in_while:
        state.fail(node, op, "it stands in the condition of a while", "compute it in the loop's body")
    generator = node.args[0]
    result: list[e.Var] = []
    with state.block() as loops:
        _loops(state, generator, generator.generators, op, result)
    var = result[0]
    state.emit(s.Let(var, build.identity(op, var.dtype), mutable=True, span=state.span(node)))
    for statement in loops:
        state.emit(statement)
    return var


def _loops(
    state: State, generator: ast.GeneratorExp, rest: list[ast.comprehension], op: str, result: list[e.Var]
) -> None:
    if not rest:
        value = lift(state, evaluate(state, generator.elt), generator, op)
        if op in ("any", "all"):
            value = as_condition(value)
        elif value.dtype == boolean:
            value = build.cast(value, i32)
        var = e.Var(value.dtype, state.fresh(state.target or op), span=state.span(generator))
        result.append(var)
        new = build.binary(COMBINE[op], var, value, state.span(generator))
        state.emit(s.Assign(var, new, span=state.span(generator)))
        return
    first, *inner = rest
    ends = _ends(state, generator, first, op)
    assert isinstance(first.target, ast.Name)
    loop = e.Var(index, state.fresh(first.target.id), span=state.span(first.target))
    target, state.target = state.target, None
    with state.block() as body:
        state.bind(first.target.id, loop)
        conditions = [as_condition(lift(state, evaluate(state, test), test, "if")) for test in first.ifs]
        state.target = target
        if conditions:
            with state.block() as then:
                _loops(state, generator, inner, op, result)
            test = conditions[0]
            for other in conditions[1:]:
                test = build.binary("and", test, other)
            state.emit(s.If(test, tuple(then), span=state.span(generator)))
        else:
            _loops(state, generator, inner, op, result)
    state.emit(s.For(loop, *ends, tuple(body), span=state.span(generator)))


def _ends(
    state: State, generator: ast.GeneratorExp, loop: ast.comprehension, op: str
) -> tuple[e.Expr, e.Expr, e.Expr]:
    over = loop.iter
    function = evaluate(state, over.func) if isinstance(over, ast.Call) else None
    if function is not range or not isinstance(over, ast.Call) or not 1 <= len(over.args) <= 2:
        state.fail(
            generator,
            op,
            "its loop is no range of one or two ends",
            f"write tile.{op}(... for k in range(n))",
        )
    if not isinstance(loop.target, ast.Name):
        state.fail(
            generator,
            op,
            "its loop has no single variable",
            "nest loops: for i in range(n) for j in range(m)",
        )
    values = [evaluate(state, arg) for arg in over.args]
    for value in values:
        if not isinstance(value, int | e.Expr):
            state.fail(generator, op, f"an end of its range is {describe(value)}", "give whole numbers")
    ends = [lift(state, value, over, op) for value in values]
    start, stop = ends if len(ends) == 2 else (e.const(0), ends[0])
    return start, stop, e.const(1)
