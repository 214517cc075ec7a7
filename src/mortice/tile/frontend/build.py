"""From a Python function and a signature to tile IR. Starts again when a dimension or a scalar turns out to be more
than was thought; each start settles at least one, so it ends."""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mortice.tile.diagnostics import ArgumentError, TileError
from mortice.tile.dtypes import index
from mortice.tile.frontend import calls, statements
from mortice.tile.frontend.source import Source, read
from mortice.tile.frontend.state import NeedMutable, NeedStatic, State
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.signature import ScalarType, Signature, TensorType

Axis = tuple[str, int]


@dataclass(frozen=True)
class Built:
    """static: the dimensions that became constants, each as (argument, axis) -> value: another call with other values
    needs another build."""

    function: s.Function
    static: dict[Axis, int]


def build(function: Callable[..., Any], signature: Signature) -> Built:
    """Raises TileError."""
    source = read(function)
    names, owners = dimension_names(source, signature)
    shapes = dict(signature.shapes)
    static: dict[str, int] = {}
    mutable: frozenset[str] = frozenset()
    while True:
        try:
            made = _once(source, signature, names, static, mutable)
        except NeedStatic as need:
            for name in need.names:
                tensor, axis = owners[name]
                if tensor not in shapes:
                    problem = f"dimension {axis} of {tensor} sizes a tile, and no shape is given"
                    raise TileError(
                        source.span(source.tree), function.__name__, problem, "give the shape"
                    ) from None
                static[name] = shapes[tensor][axis]
        except NeedMutable as need:
            mutable |= {need.name}
        else:
            return Built(made, {owners[name]: value for name, value in static.items()})


def dimension_names(
    source: Source, signature: Signature
) -> tuple[dict[str, tuple[str, ...]], dict[str, Axis]]:
    """Names of each tensor's dimensions, from the top-level `M, K = A.shape`, else `A_0`; and who has each first."""
    given: dict[str, list[str]] = {}
    for node in source.tree.body:
        match node:
            case ast.Assign(
                targets=[ast.Tuple(elts=items)], value=ast.Attribute(value=ast.Name(id=name), attr="shape")
            ):
                given.setdefault(name, [item.id if isinstance(item, ast.Name) else "_" for item in items])
    names: dict[str, tuple[str, ...]] = {}
    owners: dict[str, Axis] = {}
    for tensor, kind in signature.arguments:
        if not isinstance(kind, TensorType):
            continue
        said = given.get(tensor, [])
        if said and len(said) != kind.rank:
            problem = (
                f"it is called with {kind.rank} dimensions, the kernel names {len(said)}: {', '.join(said)}"
            )
            raise ArgumentError(source.span(source.tree), tensor, problem, "pass a tensor of that rank")
        said = [name if name != "_" else f"{tensor}_{i}" for i, name in enumerate(said or ["_"] * kind.rank)]
        names[tensor] = tuple(said)
        for axis, name in enumerate(said):
            owners.setdefault(name, (tensor, axis))
    return names, owners


def _once(
    source: Source,
    signature: Signature,
    names: dict[str, tuple[str, ...]],
    static: dict[str, int],
    mutable: frozenset[str],
) -> s.Function:
    arguments = frozenset(name for name, _ in signature.arguments)
    state = State(source, static, mutable, arguments, calls.call, statements.inline)
    state.dims = frozenset(name for said in names.values() for name in said)
    state.taken |= state.dims
    params: list[s.Tensor | s.Scalar] = []
    for name, kind in signature.arguments:
        if isinstance(kind, TensorType):
            shape = tuple(e.const(static[n]) if n in static else e.Var(index, n) for n in names[name])
            strides, span = _strides(name, kind), source.span(source.tree)
            buffer = e.Buffer(state.keep(name), kind.dtype, shape, "global", strides, kind.align, span=span)
            params.append(s.Tensor(buffer))
            state.bind(name, buffer)
        elif isinstance(kind, ScalarType):
            var = e.Var(kind.dtype, state.keep(name))
            params.append(s.Scalar(var))
            state.bind(name, var)
        else:
            state.bind(name, None)
    for name, constant in signature.constants:
        state.bind(name, constant)
    statements.run(state, source.tree.body)
    _results(state)
    body = tuple(state.blocks[0])
    written = {node.buffer.name for node in walk(body) if isinstance(node, s.Store | s.Atomic)}
    written |= {node.target.buffer.name for node in walk(body) if isinstance(node, s.Copy | s.Fill)}
    made = [
        s.Tensor(p.buffer, written=p.buffer.name in written) if isinstance(p, s.Tensor) else p for p in params
    ]
    made += [s.Tensor(buffer, written=True, result=True) for buffer in state.returned]
    return s.Function(source.tree.name, tuple(made), body, span=source.span(source.tree))


def _results(state: State) -> None:
    for buffer in state.results:
        if buffer not in state.returned:
            state.fail(
                state.source.tree,
                "empty",
                f"{buffer.name} is made and not returned",
                f"end with return {buffer.name}",
            )


def _strides(name: str, kind: TensorType) -> tuple[e.Expr, ...] | None:
    if kind.contiguous:
        return None
    outer = tuple(e.Var(index, f"{name}_stride{i}") for i in range(kind.rank))
    return (*outer[:-1], e.const(1)) if kind.unit_inner else outer
