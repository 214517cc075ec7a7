"""Statements of a kernel: assignments, loops, conditions."""

import ast
import inspect
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mortice.tile.dtypes import boolean, index
from mortice.tile.frontend import jumps, views
from mortice.tile.frontend.calls import form
from mortice.tile.frontend.expressions import (
    IR_VALUES,
    OPERATORS,
    as_condition,
    element,
    evaluate,
    is_construct,
)
from mortice.tile.frontend.source import read
from mortice.tile.frontend.state import Binding, NeedMutable, State, describe, lift
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s

LOOPS = ("grid", "parallel", "pipelined", "unroll")


def run(state: State, nodes: list[ast.stmt]) -> None:
    for i, node in enumerate(nodes):
        statement(state, node)
        rest = nodes[i + 1 :]
        if rest and next(jumps.own([node]), None) is not None:
            with state.block() as body:
                run(state, rest)
            state.emit(s.If(jumps.going(state.jumps[-1]), tuple(body), span=state.span(rest[0])))
            return


def iteration(state: State, here: jumps.Jumps, nodes: list[ast.stmt]) -> None:
    """A loop's body, once."""
    jumps.begin(state, here)
    if here.stop is None:
        run(state, nodes)
        return
    with state.block() as body:
        run(state, nodes)
    state.emit(s.If(jumps.going(here), tuple(body), span=state.span(nodes[0])))


def statement(state: State, node: ast.stmt) -> None:  # noqa: C901 - a table of all statements
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Pass():
            return
        case ast.Expr(value=value):
            evaluate(state, value)
        case ast.Assign(targets=[target]):
            _assign(state, target, node)
        case ast.AnnAssign(target=target, value=ast.expr()):
            _assign(state, target, node)
        case ast.AugAssign():
            _augmented(state, node)
        case ast.For():
            _for(state, node)
        case ast.If():
            _if(state, node)
        case ast.While():
            state.in_while = True
            condition = as_condition(lift(state, evaluate(state, node.test), node, "while"))
            state.in_while = False
            with jumps.loop(state, node) as here:
                if here.stop is not None:
                    condition = build.binary(
                        "and", build.unary("not", here.stop), condition, state.span(node)
                    )
                with state.block() as body:
                    iteration(state, here, node.body)
            state.emit(s.While(condition, tuple(body), span=state.span(node)))
        case ast.With():
            _role(state, node)
        case ast.Break() | ast.Continue():
            jumps.jump(state, node)
        case ast.Assert():
            _assert(state, node)
        case ast.Return():
            _return(state, node)
        case _:
            word = type(node).__name__.lower()
            state.fail(
                node, word, "is not understood in a kernel", "use for, if, while, assignments and operators"
            )


def _assign(state: State, target: ast.expr, node: Any) -> None:
    if isinstance(target, ast.Subscript):
        _store(state, target, evaluate(state, node.value), node)
        return
    value = _named_value(state, target, node.value)
    if isinstance(target, ast.Tuple):
        values = value if isinstance(value, tuple) else None
        if values is None or len(values) != len(target.elts):
            count = len(values) if values is not None else describe(value)
            state.fail(
                node,
                "=",
                f"{len(target.elts)} names for {count} values",
                "name each, `_` for what you ignore",
            )
        for item, part in zip(target.elts, values, strict=True):
            assert isinstance(item, ast.Name)
            _set(state, item.id, part, node)
        return
    if not isinstance(target, ast.Name):
        state.fail(node, "=", "its target is no name or element", "assign to a name or to A[i, j]")
    _set(state, target.id, value, node)


def _named_value(state: State, target: ast.expr, value: ast.expr) -> Any:
    """The value; what it makes is called after the target."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        return tuple(_named_value(state, *pair) for pair in zip(target.elts, value.elts, strict=True))
    state.target = target.id if isinstance(target, ast.Name) else None
    result = evaluate(state, value)
    state.target = None
    return result


def _set(state: State, name: str, value: Any, node: ast.AST) -> None:
    if name == "_":
        return
    bound = state.names.get(name)
    if bound is not None and isinstance(bound.value, e.Var) and bound.value.name in state.variables:
        new = build.coerced(lift(state, value, node, "="), bound.value.dtype)
        state.emit(s.Assign(bound.value, new, span=state.span(node)))
        return
    scalar = isinstance(value, e.Expr | int | float) and not isinstance(value, e.Buffer)
    if bound is not None and bound.depth < state.depth and name not in state.params:
        if scalar and isinstance(bound.value, e.Expr | int | float):
            raise NeedMutable(name)
        state.fail(
            node,
            "=",
            f"{name} is {describe(bound.value)} outside this block",
            "take another name in the block",
        )
    if name in state.mutable and scalar:
        initial = lift(state, value, node)
        var = e.Var(initial.dtype, state.fresh(name), span=state.span(node))
        state.variables.add(var.name)
        state.emit(s.Let(var, initial, mutable=True, span=state.span(node)))
        state.bind(name, var)
    elif isinstance(value, e.Expr) and not isinstance(value, e.Const | e.Var):
        var = e.Var(value.dtype, state.fresh(name), span=state.span(node))
        state.lets[var.name] = value
        state.emit(s.Let(var, value, span=state.span(node)))
        state.bind(name, var)
    elif isinstance(value, e.Var) and value.name in state.variables:
        var = e.Var(value.dtype, state.fresh(name), span=state.span(node))
        state.emit(s.Let(var, value, span=state.span(node)))
        state.bind(name, var)
    else:
        state.bind(name, value)


def _augmented(state: State, node: ast.AugAssign) -> None:
    kind, place = type(node.op), ast.copy_location(ast.BinOp(node.target, node.op, node.value), node)
    if kind not in OPERATORS:
        state.fail(node, kind.__name__, "is not understood in a kernel", "use tile.gemm for matrix products")
    value = evaluate(state, place)
    if isinstance(node.target, ast.Subscript):
        _store(state, node.target, value, node)
    elif isinstance(node.target, ast.Name):
        _set(state, node.target.id, value, node)


def _store(state: State, target: ast.Subscript, value: Any, node: ast.AST) -> None:
    buffer, indices = element(state, target, "=")
    new = lift(state, value, node, "=")
    if buffer.name in state.views:
        views.store(state, buffer, indices, new, node)
        return
    if new.dtype.is_float and not buffer.dtype.is_float:
        state.fail(node, "=", f"a {new.dtype} goes into {describe(buffer)}", f"cast it: {buffer.dtype}(...)")
    state.emit(s.Store(buffer, indices, build.coerced(new, buffer.dtype), span=state.span(node)))


def _for(state: State, node: ast.For) -> None:
    if node.orelse:
        state.fail(node, "for", "it has an else", "write what follows after the loop")
    call = node.iter
    if isinstance(call, ast.Call):
        function = evaluate(state, call.func)
        kind = getattr(function, "construct", None)
        if function is range or kind in LOOPS:
            args = [evaluate(state, arg) for arg in call.args]
            options = {item.arg: evaluate(state, item.value) for item in call.keywords if item.arg}
            if function is range:
                _serial(state, node, args, "serial", 0)
            else:
                _construct_loop(state, node, call, function, str(kind), args, options)
            return
    values = evaluate(state, call)
    if isinstance(values, IR_VALUES) or not isinstance(values, Iterable):
        state.fail(
            node, "for", f"it goes over {describe(values)}", "use range, tile.parallel, tile.grid or a tuple"
        )
    _unrolled(state, node, values)


def _construct_loop(
    state: State,
    node: ast.For,
    call: ast.Call,
    function: Any,
    kind: str,
    args: list[Any],
    options: dict[str, Any],
) -> None:
    try:
        given = inspect.signature(function).bind(*args, **options)
    except TypeError as error:
        state.fail(call, kind, str(error), f"its form is {form(function)}")
    given.apply_defaults()
    if kind == "unroll":
        count = state.constant(args[0], "unroll", "the count", call)
        _unrolled(state, node, range(count))
    elif kind == "pipelined":
        stages = state.constant(given.arguments["stages"], "pipelined", "stages", call)
        if not 0 <= stages <= 16:
            state.fail(call, "pipelined", f"stages is {stages}", "give 0 to 16")
        _serial(state, node, args, "pipelined", stages)
    elif kind == "parallel":
        _parallel(state, node, args)
    else:
        _grid(state, node, args, given.arguments)


def _loop_vars(state: State, node: ast.For, count: int) -> tuple[e.Var, ...]:
    targets = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
    if len(targets) != count or not all(isinstance(item, ast.Name) for item in targets):
        state.fail(
            node, "for", f"{len(targets)} names for {count} extents", "name one loop variable an extent"
        )
    return tuple(e.Var(index, state.fresh(item.id), span=state.span(item)) for item in targets)  # type: ignore[attr-defined]


def _bind_loop(state: State, node: ast.For, variables: tuple[e.Var, ...]) -> None:
    targets = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
    for item, var in zip(targets, variables, strict=True):
        state.bind(item.id, var)  # type: ignore[attr-defined]


def _serial(state: State, node: ast.For, args: list[Any], kind: str, stages: int) -> None:
    if not 1 <= len(args) <= 3:
        state.fail(node, kind, f"{len(args)} ends", "give stop, or start and stop")
    ends = [lift(state, arg, node, kind) for arg in args]
    start, stop = (e.const(0), ends[0]) if len(ends) == 1 else (ends[0], ends[1])
    step = ends[2] if len(ends) == 3 else e.const(1)
    if isinstance(step, e.Const) and step.value == 0:
        state.fail(node, kind, "the step is 0", "give another step")
    variables = _loop_vars(state, node, 1)
    why = "copies of a pipelined loop run ahead" if kind == "pipelined" else ""
    with jumps.loop(state, node, why) as here, state.block() as body:
        _bind_loop(state, node, variables)
        iteration(state, here, node.body)
    state.emit(s.For(variables[0], start, stop, step, tuple(body), kind, stages, span=state.span(node)))


def _unrolled(state: State, node: ast.For, values: Iterable[Any]) -> None:
    with jumps.loop(state, node) as here:
        _copies(state, node, values, here)


def _copies(state: State, node: ast.For, values: Iterable[Any], here: jumps.Jumps) -> None:
    assert isinstance(node.target, ast.Name | ast.Tuple)
    for value in values:
        names = [node.target] if isinstance(node.target, ast.Name) else node.target.elts
        parts = [value] if isinstance(node.target, ast.Name) else list(value)
        for name, part in zip(names, parts, strict=True):
            state.names[name.id] = Binding(part, state.depth)  # type: ignore[attr-defined]
        if here.skip is None:
            run(state, node.body)
            continue
        own = replace(here, skip=e.Var(boolean, state.fresh("skipped"), span=here.skip.span))
        state.jumps[-1] = own
        iteration(state, own, node.body)


def _parallel(state: State, node: ast.For, args: list[Any]) -> None:
    if state.in_parallel:
        state.fail(
            node,
            "parallel",
            "it stands inside another parallel loop",
            "name all extents in one loop, or use range",
        )
    extents = tuple(lift(state, arg, node, "parallel") for arg in args)
    if not extents:
        state.fail(node, "parallel", "it has no extents", "give one a loop variable")
    if not state.in_launch and state.depth:
        state.fail(
            node,
            "parallel",
            "it stands inside a loop or condition",
            "put it at the top level, or inside a grid",
        )
    if state.in_launch:
        for i, extent in enumerate(extents):
            state.constant(extent, "parallel", f"extent {i}", node)
    variables = _loop_vars(state, node, len(extents))
    state.in_parallel = True
    with (
        jumps.loop(state, node, "the iterations of a parallel loop have no order") as here,
        state.block() as body,
    ):
        _bind_loop(state, node, variables)
        iteration(state, here, node.body)
    state.in_parallel = False
    state.emit(s.Parallel(variables, extents, tuple(body), span=state.span(node)))


def _grid(state: State, node: ast.For, args: list[Any], options: dict[str, Any]) -> None:
    if state.depth:
        state.fail(
            node, "grid", "it stands inside a loop or condition", "put grids at the top level of the kernel"
        )
    extents = tuple(lift(state, arg, node, "grid") for arg in args)
    if not 1 <= len(extents) <= 3:
        state.fail(node, "grid", f"it has {len(extents)} extents", "give one to three")
    threads = options["threads"]
    if threads is not None:
        threads = state.constant(threads, "grid", "threads", node)
        if threads % 32 or not 32 <= threads <= 1024:
            state.fail(node, "grid", f"threads is {threads}", "give a multiple of 32 up to 1024")
    panel, cluster = (state.constant(options[x], "grid", x, node) for x in ("panel", "cluster"))
    variables = _loop_vars(state, node, len(extents))
    state.in_launch = True
    with jumps.loop(state, node, "the blocks of a grid have no order") as here, state.block() as body:
        _bind_loop(state, node, variables)
        iteration(state, here, node.body)
    state.in_launch = False
    state.emit(s.Launch(variables, extents, tuple(body), threads, panel, cluster, span=state.span(node)))


def _if(state: State, node: ast.If) -> None:
    condition = evaluate(state, node.test)
    if isinstance(condition, e.Const):
        condition = condition.value
    if not isinstance(condition, e.Expr):
        run(state, node.body if condition else node.orelse)
        return
    with state.block() as then:
        run(state, node.body)
    with state.block() as otherwise:
        run(state, node.orelse)
    state.emit(s.If(as_condition(condition), tuple(then), tuple(otherwise), span=state.span(node)))


def _role(state: State, node: ast.With) -> None:
    call = node.items[0].context_expr
    function = evaluate(state, call.func) if isinstance(call, ast.Call) else None
    if not isinstance(call, ast.Call) or len(node.items) > 1 or not is_construct(function, "role"):
        state.fail(node, "with", "it enters no role", 'write `with tile.role("name", warps=4):`')
    if not state.in_launch or state.in_parallel:
        state.fail(
            node,
            "role",
            "it stands outside a grid or in a parallel loop",
            "put roles into the body of a grid",
        )
    names = [evaluate(state, arg) for arg in call.args]
    options = {str(item.arg): evaluate(state, item.value) for item in call.keywords}
    if len(names) != 1 or not {"warps"} <= set(options) <= {"warps", "registers"}:
        state.fail(
            node, "role", "its arguments are wrong", 'write `with tile.role("name", warps=4, registers=40):`'
        )
    warps, registers = (state.constant(options.get(x, 0), "role", x, node) for x in ("warps", "registers"))
    with state.block() as body:
        run(state, node.body)
    role = s.Role(str(names[0]), warps, registers, tuple(body), span=state.span(node))
    before = state.blocks[-1][-1] if state.blocks[-1] else None
    if isinstance(before, s.Roles):
        state.blocks[-1][-1] = s.Roles((*before.roles, role), span=before.span)
    else:
        state.emit(s.Roles((role,), span=state.span(node)))


def _assert(state: State, node: ast.Assert) -> None:
    condition = evaluate(state, node.test)
    message = evaluate(state, node.msg) if node.msg else ast.unparse(node.test)
    if not isinstance(message, str):
        state.fail(node, "assert", "its message is no text", "give a plain string")
    if isinstance(condition, e.Const):
        condition = condition.value
    if isinstance(condition, e.Expr):
        state.emit(s.Check(as_condition(condition), message, span=state.span(node)))
    elif not condition:
        state.fail(
            node, "assert", f"`{message}` does not hold", "call the kernel with other arguments or constants"
        )


def _return(state: State, node: ast.Return) -> None:
    if state.depth:
        state.fail(node, "return", "it stands inside a loop or condition", "return at the end of the kernel")
    if node.value is None:
        return
    value = evaluate(state, node.value)
    for item in value if isinstance(value, tuple) else (value,):
        if not isinstance(item, e.Buffer) or item not in state.results:
            state.fail(
                node, "return", f"{describe(item)} was not made by tile.empty", "return what tile.empty made"
            )
        state.returned.append(item)


def inline(state: State, node: ast.Call, function: Any, args: list[Any], keywords: dict[str, Any]) -> Any:
    """The body of a `tile.inline` function here, with names of its own; its last statement may return a value."""
    if state.inlined > 50:
        state.fail(node, function.__name__, "it inlines itself without end", "use a loop")
    source = read(function)
    try:
        given = inspect.signature(function).bind(*args, **keywords)
    except TypeError as error:
        state.fail(node, function.__name__, str(error), "pass what its signature names")
    given.apply_defaults()
    outer_source, outer_names = state.source, state.names
    state.source, state.names = source, {}
    state.inlined += 1
    for name, value in given.arguments.items():
        if name in state.mutable:
            _set(state, name, value, node)
        else:
            state.bind(name, value)
    *body, last = source.tree.body
    run(state, body)
    result = None
    if isinstance(last, ast.Return):
        result = evaluate(state, last.value) if last.value else None
    else:
        statement(state, last)
    state.inlined -= 1
    state.source, state.names = outer_source, outer_names
    return result
