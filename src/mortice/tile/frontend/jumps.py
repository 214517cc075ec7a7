"""`break` and `continue`: variables that say so, and conditions on what follows; no later part of the compiler has to know
of them."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mortice.tile.dtypes import boolean
from mortice.tile.frontend.state import State
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s


@dataclass
class Jumps:
    """Of one loop. stop: that it is broken off; skip: that this iteration is over. why: the reason a break is refused."""

    stop: e.Var | None
    skip: e.Var | None
    why: str = ""


def own(nodes: list[ast.stmt]) -> Iterator[ast.Break | ast.Continue]:
    """Jumps that belong to the loop whose body this is."""
    for node in nodes:
        match node:
            case ast.Break() | ast.Continue():
                yield node
            case ast.If():
                yield from own(node.body)
                yield from own(node.orelse)
            case ast.With():
                yield from own(node.body)


@contextmanager
def loop(state: State, node: ast.For | ast.While, why: str = "") -> Iterator[Jumps]:
    """Around reading a loop. why: the reason that it may not be broken off."""
    found = list(own(node.body))
    breaks = next((x for x in found if isinstance(x, ast.Break)), None)
    if breaks is not None and why:
        state.fail(breaks, "break", why, "use continue, or a range that ends earlier")
    stop = skip = None
    if breaks is not None:
        stop = e.Var(boolean, state.fresh("stopped"), span=state.span(breaks))
        state.emit(s.Let(stop, e.Const(boolean, False), mutable=True, span=stop.span))
    if found:
        skip = e.Var(boolean, state.fresh("skipped"), span=state.span(found[0]))
    state.jumps.append(Jumps(stop, skip, why))
    yield state.jumps[-1]
    state.jumps.pop()


def begin(state: State, jumps: Jumps) -> None:
    """At the start of an iteration."""
    if jumps.skip is not None:
        first: e.Expr = jumps.stop if jumps.stop is not None else e.Const(boolean, False)
        state.emit(s.Let(jumps.skip, first, mutable=True, span=jumps.skip.span))


def going(jumps: Jumps) -> e.Expr:
    """That the iteration is not over."""
    assert jumps.skip is not None
    return build.unary("not", jumps.skip, jumps.skip.span)


def jump(state: State, node: ast.Break | ast.Continue) -> None:
    if not state.jumps:
        state.fail(node, type(node).__name__.lower(), "there is no loop around it", "put it inside a loop")
    here = state.jumps[-1]
    for var in (here.skip, here.stop if isinstance(node, ast.Break) else None):
        if var is not None:
            state.emit(s.Assign(var, e.Const(boolean, True), span=state.span(node)))
