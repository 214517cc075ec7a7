"""What the parts of the lowering share: names, statements made so far, where each tile has gone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from mortice.tile.diagnostics import NOWHERE, Span, UnsupportedError
from mortice.tile.dtypes import DType, boolean, index, u32, widened
from mortice.tile.ir import build
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.passes.gpu import arithmetic as a
from mortice.tile.passes.gpu.cards import SM_90A, Card
from mortice.tile.passes.gpu.fragments import Layout
from mortice.tile.passes.gpu.tiles import SharedTile
from mortice.tile.passes.ranges import Ranges

WORKERS_BARRIER = 8  # named barrier of all threads that compute


@dataclass(frozen=True, slots=True)
class Note:
    """What was decided against the author's hope, for `explain`."""

    span: Span
    operator: str
    decision: str
    reason: str


@dataclass(frozen=True, slots=True)
class Counter:
    """Where a role stands in a ring: slot and parity, variables of its own."""

    slot: e.Var
    parity: e.Var


@dataclass
class Context:
    """threads: that compute; groups: warpgroups of them. thread: the number of the running one among them."""

    function: s.Function
    launch: s.Launch
    threads: int
    groups: int
    layouts: dict[str, Layout]
    tiles: dict[str, SharedTile]
    ranges: Ranges
    notes: list[Note]
    card: Card = SM_90A
    warps: tuple[int, int] | None = None  # below and beside one another, where they multiply with mma
    packed: frozenset[str] = frozenset()
    deferred: frozenset[str] = (
        frozenset()
    )  # row sums that each thread keeps for itself until their loop is over
    sums: frozenset[str] = frozenset()  # fragments to which products are added
    registers: dict[str, e.Buffer] = field(default_factory=dict)
    maps: dict[str, s.TensorMap] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    memory: e.Buffer = field(default_factory=lambda: e.Buffer("memory", index, (), "shared"))
    scratch: int = 0  # byte offset of a word for each thread
    staging: int = 0  # byte offset of the boxes through which results leave
    aligned: frozenset[str] = frozenset()  # results that keep TMA's rules
    thread: e.Expr = field(default_factory=lambda: a.const(0))
    blocks: list[list[s.Stmt]] = field(default_factory=lambda: [[]])

    def emit(self, *statements: s.Stmt) -> None:
        self.blocks[-1].extend(statements)

    def op(
        self, name: str, *operands: e.Expr | e.Region, span: Span = NOWHERE, **attributes: int | str | bool
    ) -> None:
        self.emit(a.op(name, *operands, span=span, **attributes))

    @contextmanager
    def block(self) -> Iterator[list[s.Stmt]]:
        """Statements made inside go to a list of their own."""
        made: list[s.Stmt] = []
        self.blocks.append(made)
        yield made
        self.blocks.pop()

    @contextmanager
    def unroll(self, count: int, name: str = "i", step: int = 1) -> Iterator[e.Expr]:
        if count == step:
            yield a.const(0)
            return
        var = self.var(name)
        with self.block() as body:
            yield var
        self.emit(s.For(var, a.const(0), a.const(count), a.const(step), tuple(body), "unroll"))

    @contextmanager
    def when(self, condition: e.Expr) -> Iterator[None]:
        with self.block() as body:
            yield
        if isinstance(condition, e.Const):
            self.emit(*(body if condition.value else ()))
        elif body:
            self.emit(s.If(condition, tuple(body)))

    def fresh(self, name: str) -> str:
        candidate, number = name, 0
        while candidate in self.names:
            number += 1
            candidate = f"{name}_{number}"
        self.names.add(candidate)
        return candidate

    def var(self, name: str, dtype: DType = index) -> e.Var:
        return e.Var(dtype, self.fresh(name))

    def let(self, name: str, value: e.Expr, mutable: bool = False) -> e.Var:
        var = self.var(name, value.dtype)
        self.emit(s.Let(var, value, mutable))
        return var

    def array(self, name: str, dtype: DType, count: int) -> e.Buffer:
        """Registers, declared here."""
        buffer = e.Buffer(self.fresh(name), dtype, (a.const(count),), "local")
        self.emit(s.Alloc(buffer))
        return buffer

    def address(self, offset: e.Expr) -> e.Region:
        return a.box(self.memory, offset)

    def sync(self) -> None:
        """All threads that compute."""
        barrier = WORKERS_BARRIER if self.groups else 0
        self.op("sync", a.const(barrier), a.const(self.threads))

    def note(self, span: Span, operator: str, decision: str, reason: str) -> None:
        note = Note(span, operator, decision, reason)
        if note not in self.notes:
            self.notes.append(note)

    def refuse(self, node: s.Stmt | e.Region | e.Expr, operator: str, problem: str, remedy: str) -> NoReturn:
        raise UnsupportedError(node.span, operator, f"{self.card.name}: {problem}", remedy)

    def declare(self, buffer: e.Buffer) -> None:
        """Registers of a fragment."""
        layout = self.layouts[buffer.name]
        if buffer.name in self.packed:
            self.registers[buffer.name] = self.array(buffer.name, u32, layout.slots // 2)
        else:
            dtype = widened(buffer.dtype) if buffer.dtype != boolean else boolean
            self.registers[buffer.name] = self.array(buffer.name, dtype, layout.slots)

    def rounded(self, value: e.Expr, dtype: DType) -> e.Expr:
        """As it would come back from memory of that type."""
        return build.cast(value, dtype) if dtype.bits < 32 or dtype != value.dtype else value

    def pack(self, dtype: DType, low: e.Expr, high: e.Expr) -> e.Expr:
        return a.call(f"pack_{dtype.name}x2", low, high)


def advance(cx: Context, at: Counter, stages: int) -> None:
    """To the next slot; the parity turns when the ring does."""
    if stages == 1:
        cx.emit(s.Assign(at.parity, build.binary("xor", at.parity, a.const(1))))
        return
    cx.emit(s.Assign(at.slot, a.add(at.slot, 1)))
    with cx.when(a.equal(at.slot, stages)):
        cx.emit(
            s.Assign(at.slot, a.const(0)), s.Assign(at.parity, build.binary("xor", at.parity, a.const(1)))
        )
