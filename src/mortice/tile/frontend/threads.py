"""The thread level as a kernel writes it: instructions, functions, roles, barriers."""

import ast
from typing import Any

from mortice.tile.dtypes import i64
from mortice.tile.frontend.state import Box, Slice, State, describe, full, lift, minus
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.thread import FUNCTIONS, OPS


def thread_level(state: State, node: ast.Call, name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
    """A value for a function, nothing for an instruction, which is emitted."""
    if not state.in_launch:
        state.fail(node, name, "there is no grid around it", "put it inside `for ... in tile.grid(...)`")
    if name in FUNCTIONS:
        if len(args) != FUNCTIONS[name].args or keywords:
            state.fail(node, name, f"it gets {len(args)} arguments", f"give it {FUNCTIONS[name].args}")
        return build.call(name, tuple(lift(state, x, node, name) for x in args), state.span(node))
    entry = OPS[name]
    kinds = [kind.removesuffix("...") for kind in entry.operands]
    many = bool(entry.operands) and entry.operands[-1].endswith("...")
    if len(args) < len(kinds) - many or (len(args) > len(kinds) and not many):
        state.fail(
            node, name, f"it gets {len(args)} operands", f"they are {', '.join(entry.operands) or 'none'}"
        )
    kinds += kinds[-1:] * (len(args) - len(kinds))
    if set(keywords) != set(entry.attributes):
        given = ", ".join(keywords) or "none"
        state.fail(
            node,
            name,
            f"its attributes are given as {given}",
            f"name {', '.join(entry.attributes) or 'none'}",
        )
    operands = tuple(_operand(state, node, name, x, kind) for x, kind in zip(args, kinds, strict=False))
    attributes = tuple((key, keywords[key]) for key in entry.attributes)
    state.emit(s.Op(name, operands, attributes, span=state.span(node)))
    return None


def barrier(state: State, node: ast.Call, given: dict[str, Any]) -> e.Buffer:
    phases, count = (state.constant(given[x], "barrier", x, node) for x in ("phases", "count"))
    buffer = e.Buffer(
        state.fresh(state.target or "barrier"), i64, (e.const(phases),), "barrier", span=state.span(node)
    )
    state.emit(s.Alloc(buffer, count=count, span=state.span(node)))
    return buffer


def _operand(state: State, node: ast.Call, name: str, value: Any, kind: str) -> e.Expr | e.Region:
    """A value or an element of a tensor as an expression; of all else the place."""
    if kind in ("value", "global"):
        return lift(state, value, node, name)
    if isinstance(value, e.Buffer):
        value = full(value)
    elif isinstance(value, e.Load):
        value = Box(value.buffer, value.indices)
    if not isinstance(value, Box):
        state.fail(
            node, name, f"{describe(value)} is given as {kind}", "give a tile, a box or an element of one"
        )
    extents = tuple(
        (item.extent or minus(extent, item.offset)) if isinstance(item, Slice) else e.const(1)
        for item, extent in zip(value.items, value.buffer.shape, strict=True)
    )
    offsets = tuple(item.offset if isinstance(item, Slice) else item for item in value.items)
    kept = tuple(i for i, item in enumerate(value.items) if isinstance(item, Slice))
    return e.Region(value.buffer, offsets, extents, kept, span=state.span(node))
