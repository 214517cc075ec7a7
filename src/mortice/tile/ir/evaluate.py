"""The value of a scalar expression of dimensions and scalars, for what the host decides before a launch."""

from collections.abc import Mapping

from mortice.tile.ir import expr as e
from mortice.tile.ir.build import FOLD

Number = int | float | bool


def evaluate(x: e.Expr, names: Mapping[str, Number]) -> Number:
    """Raises KeyError for a name without a value, ValueError for what a host cannot evaluate (a load)."""
    match x:
        case e.Const():
            return x.value
        case e.Var():
            return names[x.name]
        case e.Binary():
            value: Number = FOLD[x.op](evaluate(x.left, names), evaluate(x.right, names))
            return value
        case e.Unary(op="neg"):
            return -evaluate(x.value, names)
        case e.Unary(op="not"):
            return not evaluate(x.value, names)
        case e.Select():
            return evaluate(x.then if evaluate(x.condition, names) else x.otherwise, names)
        case e.Cast():
            value = evaluate(x.value, names)
            return float(value) if x.to.is_float else int(value)
    raise ValueError(f"the host cannot evaluate a {type(x).__name__}")
