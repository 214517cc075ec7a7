"""The pass, and what it decided."""

from dataclasses import dataclass

from mortice.tile.diagnostics import Span
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import transform, walk, with_body
from mortice.tile.passes.pipeline import Pass
from mortice.tile.passes.tiling import contraction, loops, threads
from mortice.tile.passes.tiling.machine import Machine
from mortice.tile.passes.tiling.patterns import Names


@dataclass(frozen=True, slots=True)
class Decision:
    """What a loop of level 1 became, and why."""

    span: Span
    form: str
    reason: str


def tiling(machine: Machine) -> Pass:
    return Pass("tiling", lambda function: tiled(function, machine), check, gives=frozenset({"tiled"}))


def tiled(function: s.Function, machine: Machine) -> s.Function:
    if not any(isinstance(x, s.Parallel) for x in function.body):
        return function
    names = Names.of(function)
    body: list[s.Stmt] = []
    for x in function.body:
        body += _launches(x, machine, names) if isinstance(x, s.Parallel) else [x]
    return with_body(function, tuple(body))


def _launches(loop: s.Parallel, machine: Machine, names: Names) -> list[s.Stmt]:
    found = contraction.contraction(loop, machine)
    out: list[s.Stmt] = []
    if found is not None:
        below = 0
        if machine.thin:
            few = [build.binary("le", extent, e.const(machine.thin)) for extent in found.extents]
            thin = build.binary("or", few[0], few[1])
            out += loops.loops(loop, machine, names, thin)
            below = machine.thin
            many = build.binary("gt", found.extents[1], e.const(machine.thin))
        for blocking in machine.products:
            tests: list[e.Expr] = [build.binary("gt", found.extents[0], e.const(below))] if below else []
            tests += [many] if machine.thin else []
            if blocking.rows is not None:
                tests.append(build.binary("le", found.extents[0], e.const(blocking.rows)))
                below = blocking.rows
            when: e.Expr = e.TRUE
            for test in tests:
                when = build.binary("and", when, test)
            out.append(contraction.launch(found, blocking, machine, names, when))
    elif machine.vectors:
        out = loops.loops(loop, machine, names, e.TRUE)
    else:
        out = threads.launches(loop, machine, names)
    never = [x for x in out if isinstance(x, s.Launch) and x.extents[0] == e.const(0)]
    kept = [x for x in out if x not in never]
    first = next((x for x in kept if isinstance(x, s.Launch)), None)
    return [renamed(x, names) if isinstance(x, s.Launch) and x is not first else x for x in kept]


def renamed(launch: s.Launch, names: Names) -> s.Launch:
    """With names of its own for all that it binds but tiles, which have some."""
    bound: dict[str, e.Var] = {}
    for node in walk(launch):
        own: tuple[e.Var, ...] = ()
        match node:
            case s.Launch() | s.Parallel():
                own = node.vars
            case s.For() | s.Let():
                own = (node.var,)
        for var in own:
            bound.setdefault(var.name, e.Var(var.dtype, names.name(var.name), span=var.span))
    changed: s.Launch = transform(
        launch, lambda node: bound.get(node.name, node) if isinstance(node, e.Var) else node
    )
    return changed


def decisions(function: s.Function, machine: Machine) -> list[Decision]:
    """For `explain`: of each loop outside a grid."""
    out: list[Decision] = []
    for x in function.body:
        if not isinstance(x, s.Parallel):
            continue
        found = contraction.contraction(x, machine)
        if found is not None:
            sizes = ", ".join(
                f"{b.m} x {b.n} x {b.k} ({b.stages} stages)" + (f" up to {b.rows} rows" if b.rows else "")
                for b in machine.products
            )
            what = f"a matrix product: {found.m.name} rows, {found.n.name} columns, tiles {sizes}"
            computed = [
                side for term in found.terms for side, y in (("a", term.a), ("b", term.b)) if y.box() is None
            ]
            why = "each sum is over factors of which one counts rows and the other columns"
            if computed:
                why += f"; operand {' and '.join(dict.fromkeys(computed))} is computed into its tile"
            if machine.thin:
                why += f"; results of up to {machine.thin} rows or columns are dot products"
            out.append(Decision(x.span, what, why))
        elif machine.vectors:
            reasons = {
                "rows": "the loops of its body are vectors, rows are shared out",
                "columns": f"{x.vars[-1].name} counts neighbours in memory, the folds' variable does not",
                "flat": f"no loop in its body: {x.vars[-1].name} is the vector",
            }
            kind = loops.form(x)
            out.append(Decision(x.span, kind, reasons[kind]))
        else:
            out.append(Decision(x.span, "tiles", "no sum of it is a matrix product"))
    return out


def check(function: s.Function) -> None:
    for x in function.body:
        assert not isinstance(x, s.Parallel), f"{x.span}: a parallel loop stands outside a grid"
