"""Decides for each element access which dimensions a back end must check, and proves the others.

Needs: nothing. Gives "guarded": every Load, Store has guards; an unguarded dimension is in bounds in every run.
"""

from dataclasses import replace
from typing import Any

from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import rebuild, walk, with_body
from mortice.tile.passes.pipeline import Pass
from mortice.tile.passes.ranges import Ranges, dimensions


def add_guards(function: s.Function) -> s.Function:
    ranges = dimensions(function)
    return with_body(function, tuple(_node(x, ranges) for x in function.body))


def _node(x: Any, ranges: Ranges) -> Any:
    def inner(child: Any) -> Any:
        return _node(child, ranges)

    match x:
        case s.Launch() | s.Parallel():
            with ranges.loop(x.vars, x.extents):
                return rebuild(x, inner)
        case s.For() if isinstance(x.step, e.Const) and x.step.value > 0:
            with ranges.loop((x.var,), (x.stop,), x.start):
                return rebuild(x, inner)
        case s.Let():
            let = rebuild(x, inner)
            ranges.let(x)
            return let
        case e.Load() | s.Store() if x.guards is None:
            made: Any = rebuild(x, inner)
            guards = tuple(
                not ranges.within(i, extent) for i, extent in zip(x.indices, x.buffer.shape, strict=True)
            )
            return replace(made, guards=guards)
    return rebuild(x, inner)


def check(function: s.Function) -> None:
    for node in walk(function.body):
        if isinstance(node, e.Load | s.Store):
            assert node.guards is not None, f"{node.span}: an access of {node.buffer.name} has no guards"


GUARDS = Pass("guards", add_guards, check, gives=frozenset({"guarded"}))
