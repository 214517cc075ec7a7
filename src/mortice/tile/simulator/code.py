"""Python text of a launch at the thread level: one generator for each role, run once a warp with 32-lane vectors.

A value that is the same in all lanes is a Python number, else an array of 32. Where lanes part, masks say which go on.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from mortice.tile.diagnostics import NOWHERE, Span, UnsupportedError
from mortice.tile.dtypes import boolean, widened
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.simulator.instructions import write

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "xor": "^", "shl": "<<", "shr": ">>", "lt": "<", "le": "<=", "gt": ">",
    "ge": ">=", "eq": "==", "ne": "!=", "and": "&", "or": "|", "floordiv": "//", "mod": "%",
}  # fmt: skip
PLACES = {"thread": "W.thread", "lane": "LANE", "warp": "(W.number - W.base)", "warpgroup": "((W.number - W.base) // 4)",
          "elected": "(LANE == 0)", "num_blocks": "R.blocks", "cluster_rank": "0"}  # fmt: skip


class Code:
    """text: defines `role_0`, `role_1` ... (or `role_0` alone), each `(R, B, W, block)`; spans: by number."""

    def __init__(self, function: s.Function, launch: s.Launch) -> None:
        self.function, self.launch = function, launch
        self.lines: list[str] = []
        self.depth = 0
        self.masks = ["m0"]
        self.declared: dict[str, int] = {}
        self.spans: list[Span] = []
        self.allocs = {x.buffer.name: x for x in walk(launch.body) if isinstance(x, s.Alloc)}
        self.products = {
            operand.buffer.name
            for x in walk(launch.body)
            if isinstance(x, s.Op) and x.name in ("wgmma", "wgmma_registers")
            for operand in x.operands[:2]
            if isinstance(operand, e.Region) and operand.buffer.scope == "local"
        }
        self.count = 0
        self.now = NOWHERE
        self.roles: list[tuple[int, int, int]] = []  # first warp, warps, registers

    def make(self) -> str:
        body = self.launch.body
        split = next((i for i, x in enumerate(body) if isinstance(x, s.Roles)), None)
        if split is None:
            self.roles = [((0), (self.launch.threads or 32) // 32, 0)]
            self._define(0, body, NOWHERE)
        else:
            roles = body[split]
            assert isinstance(roles, s.Roles)
            first = 0
            for i, role in enumerate(roles.roles):
                self.roles.append((first, role.warps, role.registers))
                self._define(i, (*body[:split], role, *body[split + 1 :]), role.span)
                first += role.warps
        return "\n".join(self.lines)

    def _define(self, number: int, body: s.Block, span: Span) -> None:
        self.line(f"def role_{number}(R, B, W, block):")
        with self.indent():
            self.line("m0 = None")
            left = "block"
            for i, (var, extent) in enumerate(zip(self.launch.vars, self.launch.extents, strict=True)):
                last = i == len(self.launch.vars) - 1
                self.line(f"{ident(var.name)} = {left if last else f'{left} % {self(extent)}'}")
                left = f"({left} // {self(extent)})"
            self.declared = {}
            for x in (*(x for x in self.function.body if isinstance(x, s.Let)), *body):
                self.statement(x)
            self.line("return")
            self.line("yield")

    # Text

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def indent(self) -> Iterator[None]:
        self.depth += 1
        start = len(self.lines)
        yield
        if len(self.lines) == start:
            self.line("pass")
        self.depth -= 1

    def span(self, span: Span) -> str:
        if span != NOWHERE:
            self.now = span
        self.spans.append(self.now)
        return f"R.spans[{len(self.spans) - 1}]"

    @property
    def mask(self) -> str:
        return self.masks[-1]

    @contextmanager
    def under(self, condition: str, otherwise: bool = False) -> Iterator[None]:
        self.count += 1
        name = f"m{self.count}"
        self.line(f"{name} = R.branch({self.mask}, {condition}, {not otherwise})")
        self.line(f"if {name} is not False:")
        self.masks.append(name)
        with self.indent():
            yield
        self.masks.pop()

    # Statements

    def block(self, block: s.Block) -> None:
        for x in block:
            self.statement(x)

    def statement(self, x: s.Stmt) -> None:  # noqa: C901 - a table of all statements
        match x:
            case s.Role():
                first = next(f for f, w, r in self.roles[::-1])
                self.line(f"W.base = {first}")
                if x.registers:
                    self.line(f"set_registers(B, W, {x.registers})")
                self.block(x.body)
                self.line("W.base = 0")
            case s.Alloc() if x.buffer.scope == "local":
                kind = (
                    "np.bool_" if x.buffer.dtype == boolean else f"NATIVE[{widened(x.buffer.dtype).name!r}]"
                )
                self.line(f"{ident(x.buffer.name)} = np.zeros(({math.prod(x.buffer.extents)}, 32), {kind})")
            case s.Alloc() | s.Check():
                pass
            case s.Let():
                self.declared[x.var.name] = len(self.masks)
                self.line(f"{ident(x.var.name)} = {self(x.value)}")
            case s.Assign():
                name = ident(x.var.name)
                outer = self.masks[self.declared.get(x.var.name, 1) - 1]
                self.line(f"{name} = R.assign({self.mask}, {outer}, {self(x.value)}, {name})")
            case s.Store() if x.buffer.scope == "local":
                name = ident(x.buffer.name)
                if x.buffer.name in self.products:
                    self.line(f"B.touch(W, {name}, {self.span(x.span)}, {x.buffer.name!r}, True)")
                self.line(f"R.put({name}, {self(x.indices[0])}, {self(x.value)}, {self.mask})")
            case s.Store():
                self.line(
                    f"R.store({x.buffer.name!r}, ({self.list(x.indices)}), {self(x.value)}, {x.guards}, {self.mask}, "
                    f"{self.span(x.span)})"
                )
            case s.Atomic():
                self.line(
                    f"R.atomic({x.op!r}, {x.buffer.name!r}, ({self.list(x.indices)}), {self(x.value)}, {self.mask}, "
                    f"{self.span(x.span)})"
                )
            case s.If():
                self.count += 1
                condition = f"c{self.count}"
                self.line(f"{condition} = {self(x.condition)}")
                with self.under(condition):
                    self.block(x.then)
                if x.otherwise:
                    with self.under(condition, True):
                        self.block(x.otherwise)
            case s.For():
                self._for(x)
            case s.While():
                self.line(f"while R.branch({self.mask}, {self(x.condition)}, True) is not False:")
                with self.indent():
                    self.block(x.body)
            case s.Op():
                for line in write(self, x):
                    self.line(line)
            case _:
                raise UnsupportedError(
                    x.span, type(x).__name__.lower(), "the simulator has no form of it", "lower it"
                )

    def _for(self, x: s.For) -> None:
        var = ident(x.var.name)
        if x.kind == "unroll":
            self.line(f"for {var} in range({self(x.start)}, {self(x.stop)}, {self(x.step)}):")
            with self.indent():
                self.block(x.body)
            return
        self.count += 1
        stop, step = f"stop{self.count}", f"step{self.count}"
        self.line(f"{var}, {stop}, {step} = {self(x.start)}, {self(x.stop)}, {self(x.step)}")
        again = f"again{self.count}"
        self.line("while True:")
        with self.indent():
            self.line(f"{again} = False")
            with self.under(f"R.goes_on({var}, {stop}, {step})"):
                self.line(f"{again} = True")
                self.block(x.body)
            self.line(f"if not {again}: break")
            self.line(f"{var} = {var} + {step}")

    def operand(self, x: e.Expr | e.Region) -> str:
        if not isinstance(x, e.Region):
            return self(x)
        match x.buffer.scope:
            case "map":
                return f"R.maps[{x.buffer.name!r}]"
            case "barrier":
                return f"({self.allocs[x.buffer.name].at} + 8 * ({self(x.offsets[0])}))"
            case "shared":
                return f"({self.allocs[x.buffer.name].at} + ({self(x.offsets[0])}))"
        return ""

    # Expressions

    def list(self, items: tuple[e.Expr, ...]) -> str:
        return "".join(f"{self(x)}, " for x in items)

    def __call__(self, x: e.Expr) -> str:  # noqa: C901 - a table of all expressions
        match x:
            case e.Const():
                if x.dtype == boolean:
                    return str(bool(x.value))
                if x.dtype.is_float:
                    return f"np.float32('{float(x.value)}')"
                return str(x.value)
            case e.Var():
                return ident(x.name)
            case e.Binary():
                left, right = self(x.left), self(x.right)
                if x.op in ("min", "max"):
                    return f"np.{x.op}imum({left}, {right})"
                if x.op == "div":
                    return f"R.divide({left}, {right})"
                return f"({left} {INFIX[x.op]} {right})"
            case e.Unary():
                if x.op == "not":
                    return f"np.logical_not({self(x.value)})"
                return f"({'-' if x.op == 'neg' else '~'}{self(x.value)})"
            case e.Math():
                return f"R.math({x.name!r}, {self(x.value)})"
            case e.Cast():
                return f"R.cast({self(x.value)}, {x.to.name!r})"
            case e.Bitcast():
                return f"R.bitcast({self(x.value)}, {x.value.dtype.name!r}, {x.to.name!r})"
            case e.Select():
                self.count += 1
                name = f"s{self.count}"
                return f"R.select({self(x.condition)}, lambda {name}: {self(x.then)}, lambda {name}: {self(x.otherwise)})"
            case e.Load():
                if x.buffer.scope == "local":
                    name = ident(x.buffer.name)
                    if x.buffer.name in self.products:
                        return f"R.see(B, W, {name}, {self(x.indices[0])}, {self.span(x.span)}, {x.buffer.name!r})"
                    return f"{name}[{self(x.indices[0])}]"
                return f"R.load({x.buffer.name!r}, ({self.list(x.indices)}), {x.guards}, {self.mask}, {self.span(x.span)})"
            case e.Call():
                if x.name in PLACES:
                    return PLACES[x.name]
                return f"R.{x.name}({', '.join(self(arg) for arg in x.args)})"
        raise TypeError(type(x).__name__)


def ident(name: str) -> str:
    return f"v_{name}"
