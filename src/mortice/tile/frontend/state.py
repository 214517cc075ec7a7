"""What the frontend knows while it reads a kernel: names, the block it writes, and when it must start again."""

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mortice.tile.diagnostics import Span, TileError
from mortice.tile.dtypes import DType, boolean, f32, index
from mortice.tile.frontend.source import Source
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import transform, walk


class Restart(Exception):
    """Reading found out something that must be known from the start."""


class NeedStatic(Restart):
    """Dimensions that size a tile: they become constants of the specialisation."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names


class NeedMutable(Restart):
    """A scalar that a loop or an `if` assigns anew: it becomes a variable."""

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass(frozen=True, slots=True)
class Slice:
    """`offset:` or `offset:stop` in a subscript; extent None is taken from the other side of the operator."""

    offset: e.Expr
    extent: e.Expr | None


@dataclass(frozen=True, slots=True)
class Box:
    """A sliced buffer, before the operator has settled open extents."""

    buffer: e.Buffer
    items: tuple[Slice | e.Expr, ...]
    transposed: bool = False


@dataclass
class Binding:
    value: Any
    depth: int  # of run-time control flow where it was made


Reader = Callable[["State", ast.Call], Any]


@dataclass
class State:
    source: Source
    static: dict[str, int]  # dimensions that are constants
    mutable: frozenset[str]
    params: frozenset[str]
    call: Reader  # reads a call; of calls.py, which needs what needs it
    inline: Callable[..., Any]
    names: dict[str, Binding] = field(default_factory=dict)
    blocks: list[list[s.Stmt]] = field(default_factory=lambda: [[]])
    taken: set[str] = field(default_factory=set)
    lets: dict[str, e.Expr] = field(default_factory=dict)
    dims: frozenset[str] = frozenset()
    depth: int = 0
    in_launch: bool = False
    in_parallel: bool = False
    in_while: bool = False  # in its condition
    results: list[e.Buffer] = field(default_factory=list)
    returned: list[e.Buffer] = field(default_factory=list)
    variables: set[str] = field(default_factory=set)  # mutable scalars
    target: str | None = None  # name that the value being read is about to get
    inlined: int = 0
    views: dict[str, e.Buffer] = field(default_factory=dict)  # of what buffer each is one
    jumps: list[Any] = field(default_factory=list)  # of jumps.py, of the loops around

    def emit(self, statement: s.Stmt) -> None:
        self.blocks[-1].append(statement)

    @contextmanager
    def block(self) -> Iterator[list[s.Stmt]]:
        """Statements of a nested body; names made inside end with it."""
        outer, self.names = self.names, dict(self.names)
        self.blocks.append([])
        self.depth += 1
        yield self.blocks[-1]
        self.depth -= 1
        self.blocks.pop()
        self.names = outer

    def fresh(self, name: str) -> str:
        name = name if name not in e.MATH and name != "_" else f"{name}_"
        unique, count = name, 1
        while unique in self.taken:
            unique, count = f"{name}_{count}", count + 1
        self.taken.add(unique)
        return unique

    def keep(self, name: str) -> str:
        """An argument's own name, by which a call knows it."""
        self.taken.add(name)
        return name

    def bind(self, name: str, value: Any) -> None:
        self.names[name] = Binding(value, self.depth)

    def span(self, node: ast.AST) -> Span:
        return self.source.span(node)

    def expand(self, value: e.Expr) -> e.Expr:
        """Without the names that `Let` gave: of dimensions and arguments alone."""

        def change(node: Any) -> Any:
            return (
                self.expand(self.lets[node.name])
                if isinstance(node, e.Var) and node.name in self.lets
                else node
            )

        expanded: e.Expr = transform(value, change)
        return expanded

    def constant(self, value: Any, operator: str, what: str, node: ast.AST) -> int:
        """An int known when the kernel is made. Dimensions are made constants by starting again."""
        if isinstance(value, bool) or not isinstance(value, int | e.Expr):
            self.fail(node, operator, f"{what} is {describe(value)}", "give an integer")
        if isinstance(value, int):
            return value
        if isinstance(value, e.Const) and value.dtype.is_integer:
            return int(value.value)
        names = self._dimensions(value)
        if names is None:
            self.fail(
                node,
                operator,
                f"{what} depends on run-time values",
                "use constants or dimensions of arguments",
            )
        raise NeedStatic(names)

    def _dimensions(self, value: e.Expr) -> frozenset[str] | None:
        found: set[str] = set()
        for node in walk(value):
            if isinstance(node, e.Load):
                return None
            if isinstance(node, e.Var):
                if node.name in self.dims:
                    found.add(node.name)
                elif node.name in self.lets:
                    inner = self._dimensions(self.lets[node.name])
                    if inner is None:
                        return None
                    found |= inner
                else:
                    return None
        return frozenset(found)

    def fail(self, node: ast.AST, operator: str, problem: str, remedy: str) -> NoReturn:
        raise TileError(self.span(node), operator, problem, remedy)


def lift(state: State, value: Any, node: ast.AST, operator: str = "expression") -> e.Expr:
    """A Python number as a constant of the IR: int is index, float f32."""
    span = state.span(node)
    if isinstance(value, e.Expr):
        return value
    if isinstance(value, bool):
        return e.Const(boolean, value, span=span)
    if isinstance(value, int):
        return e.Const(index, value, span=span)
    if isinstance(value, float):
        return e.Const(f32, value, span=span)
    state.fail(node, operator, f"{describe(value)} is no scalar", "index the tile, or use a tile operator")


def full(buffer: e.Buffer) -> Box:
    return Box(buffer, tuple(Slice(e.const(0), extent) for extent in buffer.shape))


def describe(value: Any) -> str:
    """A value in the words of a diagnostic."""
    from_shape = lambda shape: "[" + ", ".join(_extent(x) for x in shape) + "]"  # noqa: E731
    match value:
        case e.Buffer():
            return f"{value.name} {from_shape(value.shape)} {value.dtype} ({value.scope})"
        case Box():
            return f"a box of {value.buffer.name}"
        case e.Region():
            return f"{value.buffer.name} {from_shape(value.shape)} {value.buffer.dtype}"
        case e.Expr():
            return f"a run-time {value.dtype}"
        case DType():
            return f"the type {value}"
    return f"{value!r}"


def _extent(x: e.Expr) -> str:
    return str(x.value) if isinstance(x, e.Const) else x.name if isinstance(x, e.Var) else "?"


def minus(a: e.Expr, b: e.Expr) -> e.Expr:
    """a - b, where `x + c` minus x is c."""
    if a == b:
        return e.const(0)
    if isinstance(a, e.Binary) and a.op == "add":
        if a.left == b:
            return a.right
        if a.right == b:
            return a.left
    return build.binary("sub", a, b)
