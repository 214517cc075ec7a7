"""Takes out of a parallel loop what is the same for all its iterations: elements of other tiles, and conditions. Masks
at the ends of tensors and along a diagonal cost nothing where a tile lies inside.

Gives "unswitched": a loop with a mask has a twin without, and one test before both. The meaning is the same.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mortice.tile.dtypes import boolean
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import transform, transform_block, walk, with_body
from mortice.tile.passes.pipeline import Pass
from mortice.tile.passes.ranges import affine


def unswitch(function: s.Function) -> s.Function:
    taken = {node.name for node in walk(function.body) if isinstance(node, e.Var)}
    taken |= {node.var.name for node in walk(function.body) if isinstance(node, s.Let)}
    return with_body(function, transform_block(function.body, lambda x: _loop(x, taken)))


def _loop(x: Any, taken: set[str]) -> Any:
    if not isinstance(x, s.Parallel) or not all(isinstance(extent, e.Const) for extent in x.extents):
        return x
    x, before = _hoisted(_with_conditions_in_place(x), taken)
    test: e.Expr = e.TRUE
    decided: set[e.Expr] = set()
    for node in walk(x.body):
        if isinstance(node, e.Select) and node.condition not in decided:
            always = _always(node.condition, x)
            if always is not None:
                decided.add(node.condition)
                test = build.binary("and", test, always)
    if not decided:
        return (*before, x)

    def chosen(node: Any) -> Any:
        return (
            build.coerced(node.then, node.dtype)
            if isinstance(node, e.Select) and node.condition in decided
            else node
        )

    inside = replace(x, body=tuple(transform(node, chosen) for node in x.body))
    return (*before, s.If(test, (inside,), (x,), span=x.span))


def _hoisted(x: s.Parallel, taken: set[str]) -> tuple[s.Parallel, tuple[s.Stmt, ...]]:
    """Elements of tiles that no iteration writes and all read in one place get a name before the loop."""
    stored = {node.buffer.name for node in walk(x.body) if isinstance(node, s.Store | s.Atomic)}
    inner = {var.name for var in x.vars}
    inner |= {node.var.name for node in walk(x.body) if isinstance(node, s.Let | s.For)}
    made = {node.buffer.name for node in walk(x.body) if isinstance(node, s.Alloc)}
    names: dict[e.Expr, e.Var] = {}
    for node in walk(x.body):
        if isinstance(node, e.Load) and node.buffer.on_chip and node not in names:
            inside = [n for index in node.indices for n in walk(index)]
            fixed = not any(
                (isinstance(n, e.Var) and n.name in inner) or isinstance(n, e.Load) for n in inside
            )
            if fixed and node.buffer.name not in stored | made:
                name, count = f"{node.buffer.name}_here", 0
                while name in taken:
                    count += 1
                    name = f"{node.buffer.name}_here_{count}"
                taken.add(name)
                names[node] = e.Var(node.dtype, name)

    def named(node: Any) -> Any:
        return names.get(node, node) if isinstance(node, e.Load) else node

    lets = tuple(s.Let(var, load, span=x.span) for load, var in names.items())
    return (replace(x, body=tuple(transform(node, named) for node in x.body)) if names else x), lets


def _with_conditions_in_place(x: s.Parallel) -> s.Parallel:
    """Named conditions stand where they are used: a vector of bits beside a vector of numbers costs more than a
    comparison."""
    named = {
        n.var.name: n.value
        for n in x.body
        if isinstance(n, s.Let) and n.var.dtype == boolean and not n.mutable
    }
    stored = {node.buffer.name for node in walk(x.body) if isinstance(node, s.Store | s.Atomic)}
    named = {
        name: value
        for name, value in named.items()
        if not any(isinstance(node, e.Load) and node.buffer.name in stored for node in walk(value))
    }

    def put(node: Any) -> Any:
        return transform(named[node.name], put) if isinstance(node, e.Var) and node.name in named else node

    kept = [n for n in x.body if not (isinstance(n, s.Let) and n.var.name in named)]
    return replace(x, body=tuple(transform(node, put) for node in kept)) if named else x


def _always(condition: e.Expr, loop: s.Parallel) -> e.Expr | None:
    """A test before the loop that the condition holds in every iteration; None if there is none."""
    result: e.Expr = e.TRUE
    for part in _conjuncts(condition):
        one = _part(part, loop)
        if one is None:
            return None
        result = build.binary("and", result, one)
    return result


def _conjuncts(x: e.Expr) -> Iterator[e.Expr]:
    if isinstance(x, e.Binary) and x.op == "and" and x.dtype == boolean:
        yield from _conjuncts(x.left)
        yield from _conjuncts(x.right)
    else:
        yield x


def _part(x: e.Expr, loop: s.Parallel) -> e.Expr | None:
    variables = {var.name: extent for var, extent in zip(loop.vars, loop.extents, strict=True)}
    inner = {node.var.name for node in walk(loop.body) if isinstance(node, s.Let | s.For)}
    stored = {node.buffer.name for node in walk(loop.body) if isinstance(node, s.Store | s.Atomic)}
    names = {node.name for node in walk(x) if isinstance(node, e.Var)}
    loads = {node.buffer.name for node in walk(x) if isinstance(node, e.Load)}
    if names & inner or loads & stored:
        return None
    if not names & variables.keys():
        return x
    if not isinstance(x, e.Binary) or x.op not in ("lt", "le", "gt", "ge") or not x.left.dtype.is_integer:
        return None
    small, large = (x.left, x.right) if x.op in ("lt", "le") else (x.right, x.left)
    gap = affine(build.binary("sub", large, small), variables)
    if gap is None or any(isinstance(node, e.Load) and _mentions(node, variables) for node in walk(x)):
        return None
    least = gap[1]
    for name, factor in gap[0].items():
        if factor < 0:
            reach = build.binary("mul", build.binary("sub", variables[name], e.const(1)), e.const(factor))
            least = build.binary("add", least, reach)
    return build.binary("ge", least, e.const(1 if x.op in ("lt", "gt") else 0))


def _mentions(x: e.Expr, names: Any) -> bool:
    return any(isinstance(node, e.Var) and node.name in names for node in walk(x))


def check(function: s.Function) -> None:
    """Conditions that were taken out stand in no loop variable's scope."""
    for node in walk(function.body):
        if isinstance(node, s.If) and node.then and isinstance(node.then[0], s.Parallel) and node.otherwise:
            inner = {var.name for var in node.then[0].vars}
            assert not _mentions(node.condition, inner), (
                f"{node.span}: a test before a loop uses its variable"
            )


UNSWITCH = Pass("unswitch", unswitch, check, gives=frozenset({"unswitched"}))
