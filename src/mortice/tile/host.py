"""What happens between a call and a launch: shapes bind dimensions, stated facts are checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mortice.tile.arguments import Argument
from mortice.tile.diagnostics import ArgumentError
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.evaluate import Number, evaluate


@dataclass(frozen=True, slots=True)
class Bound:
    """dims: values of dimensions, strides and scalars by name."""

    tensors: dict[str, Argument]
    dims: dict[str, Number]


def bind(function: s.Function, tensors: Mapping[str, Argument], scalars: Mapping[str, Number]) -> Bound:
    """Raises ArgumentError that names kernel, argument, dimension and the value expected. Results need not be there
    yet: see `result_shape`."""
    dims: dict[str, Number] = dict(scalars)
    origin: dict[str, str] = {}
    for param in function.tensors:
        name = param.buffer.name
        if name not in tensors or param.result:
            continue
        _bind_shape(function, param.buffer, tensors[name], dims, origin)
    for param in function.tensors:
        if param.result and param.buffer.name in tensors:
            expected, found = result_shape(param, dims), tensors[param.buffer.name].shape
            if expected != found:
                problem = f"out is {list(found)}, the result {param.buffer.name} is {list(expected)}"
                raise ArgumentError(function.span, function.name, problem, "pass an out of that shape")
    _facts(function, dims)
    return Bound(dict(tensors), dims)


def result_shape(param: s.Tensor, dims: Mapping[str, Number]) -> tuple[int, ...]:
    return tuple(int(evaluate(extent, dims)) for extent in param.buffer.shape)


def _bind_shape(
    function: s.Function,
    buffer: e.Buffer,
    argument: Argument,
    dims: dict[str, Number],
    origin: dict[str, str],
) -> None:
    for axis, (extent, found) in enumerate(zip(buffer.shape, argument.shape, strict=True)):
        place = f"{buffer.name}.shape[{axis}]"
        if isinstance(extent, e.Var) and extent.name not in dims:
            dims[extent.name] = found
            origin[extent.name] = place
        elif evaluate(extent, dims) != found:
            expected = evaluate(extent, dims)
            why = (
                f"{extent.name} = {origin[extent.name]}"
                if isinstance(extent, e.Var)
                else "this specialisation"
            )
            problem = f"{place} is {found}, {why} says {expected}"
            raise ArgumentError(
                function.span, function.name, problem, f"pass {buffer.name} with {expected} there"
            )
    if buffer.strides is not None:
        for stride, value in zip(buffer.strides, argument.strides, strict=True):
            if isinstance(stride, e.Var):
                dims[stride.name] = value


def _facts(function: s.Function, dims: Mapping[str, Number]) -> None:
    names = dict(dims)
    for node in function.body:
        if isinstance(node, s.Let):
            try:
                names[node.var.name] = evaluate(node.value, names)
            except (KeyError, ValueError):
                continue
        if isinstance(node, s.Check) and not evaluate(node.condition, names):
            facts = ", ".join(f"{key} = {value}" for key, value in dims.items() if key in node.message)
            problem = f"`{node.message}` does not hold" + (f" with {facts}" if facts else "")
            raise ArgumentError(node.span, function.name, problem, "pass tensors for which it does")


def scalars_of(function: s.Function) -> Sequence[e.Var]:
    return [param.var for param in function.params if isinstance(param, s.Scalar)]
