"""What a level-1 loop body consists of: names, folds, stores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mortice.tile.dtypes import index
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import transform, walk

FOLDS = {"add": "sum", "max": "max", "min": "min", "or": "any", "and": "all"}


@dataclass(frozen=True, slots=True)
class Fold:
    """`var` = fold of `value` over the loops (outermost first), where the conditions hold."""

    let: s.Let
    op: str
    loops: tuple[s.For, ...]
    conditions: tuple[e.Expr, ...]
    value: e.Expr

    @property
    def var(self) -> e.Var:
        return self.let.var


@dataclass
class Names:
    """Fresh names in a function."""

    taken: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, function: s.Function) -> "Names":
        taken = {node.name for node in walk(function.body) if isinstance(node, e.Var)}
        taken |= {node.var.name for node in walk(function.body) if isinstance(node, s.Let | s.For)}
        taken |= {node.buffer.name for node in walk(function.body) if isinstance(node, s.Alloc)}
        for param in function.params:
            taken.add(param.var.name if isinstance(param, s.Scalar) else param.buffer.name)
        for tensor in function.tensors:
            for extent in (*tensor.buffer.shape, *(tensor.buffer.strides or ())):
                taken |= {node.name for node in walk(extent) if isinstance(node, e.Var)}
        for node in walk(function.body):
            if isinstance(node, s.Launch | s.Parallel):
                taken |= {var.name for var in node.vars}
        return cls(taken)

    def name(self, wish: str) -> str:
        unique, count = wish, 1
        while unique in self.taken:
            unique, count = f"{wish}_{count}", count + 1
        self.taken.add(unique)
        return unique

    def var(self, wish: str) -> e.Var:
        return e.Var(index, self.name(wish))


def parse(body: s.Block) -> list[s.Stmt | Fold]:
    """The body with each fold as one item."""
    items: list[s.Stmt | Fold] = []
    at = 0
    while at < len(body):
        found = _fold(body[at], body[at + 1]) if at + 1 < len(body) else None
        items.append(found or body[at])
        at += 2 if found else 1
    return items


def _fold(let: s.Stmt, loop: s.Stmt) -> Fold | None:
    if not (isinstance(let, s.Let) and let.mutable and isinstance(loop, s.For)):
        return None
    loops: list[s.For] = []
    conditions: list[e.Expr] = []
    body: s.Block = (loop,)
    while len(body) == 1:
        (inner,) = body
        match inner:
            case s.For(kind="serial", step=e.Const(value=1)):
                loops.append(inner)
                body = inner.body
            case s.If(otherwise=()):
                conditions.append(inner.condition)
                body = inner.then
            case s.Assign(var=var, value=e.Binary(op=op, left=left, right=right)) if (
                var == let.var and left == var and op in FOLDS and not mentions(right, {var.name})
            ):
                return Fold(let, op, tuple(loops), tuple(conditions), right)
            case _:
                return None
    return None


def inlined(items: list[s.Stmt | Fold]) -> list[s.Stmt | Fold]:
    """With immutable names replaced by their values."""
    known: dict[str, e.Expr] = {}

    def put(node: Any) -> Any:
        return substituted(node, known)

    out: list[s.Stmt | Fold] = []
    for item in items:
        if isinstance(item, Fold):
            loops = tuple(replace(x, start=put(x.start), stop=put(x.stop)) for x in item.loops)
            out.append(
                replace(item, loops=loops, conditions=tuple(map(put, item.conditions)), value=put(item.value))
            )
        elif isinstance(item, s.Let) and not item.mutable:
            known[item.var.name] = put(item.value)
        else:
            out.append(put(item))
    return out


def substituted(node: Any, values: Mapping[str, e.Expr]) -> Any:
    """Variables by name, in an expression or a statement; sums of constants are folded again."""

    def change(x: Any) -> Any:
        if isinstance(x, e.Var):
            return values.get(x.name, x)
        if isinstance(x, e.Binary) and x.dtype == index:
            return build.binary(x.op, x.left, x.right, x.span)
        return x

    return transform(node, change) if values else node


def mentions(node: Any, names: Any) -> bool:
    """Does a variable of that name stand in an expression, a statement or a block?"""
    return any(isinstance(x, e.Var) and x.name in names for x in walk(node))


def factors(x: e.Expr) -> Iterator[e.Expr]:
    if isinstance(x, e.Binary) and x.op == "mul":
        yield from factors(x.left)
        yield from factors(x.right)
    else:
        yield x


def product(parts: list[e.Expr]) -> e.Expr:
    result = parts[0]
    for part in parts[1:]:
        result = build.binary("mul", result, part, part.span)
    return result


def both(parts: list[e.Expr]) -> e.Expr:
    result: e.Expr = e.TRUE
    for part in parts:
        result = build.binary("and", result, part, part.span)
    return result


def shifted(x: e.Expr, name: str) -> e.Expr | None:
    """x without the variable, if x is the variable plus something free of it."""
    match x:
        case e.Var() if x.name == name:
            return e.const(0)
        case e.Binary(op="add" | "sub" as op, left=left, right=right):
            if mentions(left, {name}) and not mentions(right, {name}):
                rest = shifted(left, name)
                return None if rest is None else build.binary(op, rest, right)
            if op == "add" and mentions(right, {name}) and not mentions(left, {name}):
                rest = shifted(right, name)
                return None if rest is None else build.binary("add", rest, left)
    return None


def unit_inner(buffer: e.Buffer) -> bool:
    return buffer.strides is None or buffer.strides[-1] == e.const(1)
