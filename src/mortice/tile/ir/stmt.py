"""Statements. Tile operators have synchronous meaning: each is done before the next begins."""

from dataclasses import dataclass, field

from mortice.tile.diagnostics import NOWHERE, Span
from mortice.tile.ir.expr import Buffer, Expr, Region, Var

Block = tuple["Stmt", ...]
REDUCTIONS = ("sum", "max", "min", "absmax", "any", "all")
ATOMICS = ("add", "max", "min")


@dataclass(frozen=True, slots=True)
class Stmt:
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


# Structure


@dataclass(frozen=True, slots=True)
class Launch(Stmt):
    """A grid of blocks, in no order, that share nothing on chip. Several in a function run one after the other.

    threads: of a block; None lets the compiler choose. panel: block rows walked together for the cache (0: row-major).
    cluster: blocks along the first dimension that form a cluster.
    """

    vars: tuple[Var, ...]
    extents: tuple[Expr, ...]
    body: Block
    threads: int | None = None
    panel: int = 0
    cluster: int = 1


@dataclass(frozen=True, slots=True)
class For(Stmt):
    """kind: "serial", "unroll" (fully), "pipelined" (the same meaning; copies may run `stages` iterations ahead), "vector"
    (CPU: iterations in any order, but for folds into a variable)."""

    var: Var
    start: Expr
    stop: Expr
    step: Expr
    body: Block
    kind: str = "serial"
    stages: int = 0


@dataclass(frozen=True, slots=True)
class Parallel(Stmt):
    """Independent iterations: none may read or write what another writes. Inside a Launch the compiler binds them to
    threads; outside one (level 1) it makes the launch too."""

    vars: tuple[Var, ...]
    extents: tuple[Expr, ...]
    body: Block


@dataclass(frozen=True, slots=True)
class If(Stmt):
    condition: Expr
    then: Block
    otherwise: Block = ()


@dataclass(frozen=True, slots=True)
class While(Stmt):
    condition: Expr
    body: Block


# Scalars and elements


@dataclass(frozen=True, slots=True)
class Let(Stmt):
    """Names a scalar; `mutable` ones may be assigned later."""

    var: Var
    value: Expr
    mutable: bool = False


@dataclass(frozen=True, slots=True)
class Assign(Stmt):
    var: Var
    value: Expr


@dataclass(frozen=True, slots=True)
class Alloc(Stmt):
    """An on-chip tile, uninitialised. Thread level: `at` is its byte offset in the block's shared memory, `count` the
    arrivals that complete a phase of a barrier."""

    buffer: Buffer
    at: int | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class Store(Stmt):
    """One element, rounded to nearest even. Outside a global tensor nothing is written. `guards` as of Load."""

    buffer: Buffer
    indices: tuple[Expr, ...]
    value: Expr
    guards: tuple[bool, ...] | None = None


# Tile operators


@dataclass(frozen=True, slots=True)
class Copy(Stmt):
    """Shapes agree. Outside a global source it reads `pad`, outside a global destination nothing is written. Casts."""

    source: Region
    target: Region
    pad: Expr
    prefer: str = "auto"  # auto, tma, cp_async, plain: a wish that cannot be met is an error


@dataclass(frozen=True, slots=True)
class Unpack(Stmt):
    """The whole two-dimensional target from squares of a matrix in panels [N / 32, K / 32, 1024]: see passes/panels.py.
    Outside it is 0."""

    source: Region
    target: Region


@dataclass(frozen=True, slots=True)
class Fill(Stmt):
    target: Region
    value: Expr


@dataclass(frozen=True, slots=True)
class Gemm(Stmt):
    """c [m, n] (+)= a [m, k] @ b [k, n]; transpose_*: the region is stored the other way round."""

    a: Region
    b: Region
    c: Region
    transpose_a: bool = False
    transpose_b: bool = False
    clear: bool = False


@dataclass(frozen=True, slots=True)
class Reduce(Stmt):
    """target = fold of source along `axis` (of its kept dimensions); without `clear` the old target joins the fold."""

    op: str
    source: Region
    target: Region
    axis: int
    clear: bool = True


@dataclass(frozen=True, slots=True)
class Scan(Stmt):
    """Inclusive prefix fold ("sum" or "max") along `axis`; `reverse` from the end."""

    op: str
    source: Region
    target: Region
    axis: int
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class Atomic(Stmt):
    """target[i] = op(target[i], value) indivisibly; outside a global tensor nothing happens."""

    op: str
    buffer: Buffer
    indices: tuple[Expr, ...]
    value: Expr


# Thread level: statements run by each thread; operands are expressions and boxes (registers `d[0::64]`, an address
# in shared memory `tiles[offset]`, a barrier `full[stage]`, a tensor map `map[0]`).


@dataclass(frozen=True, slots=True)
class Role(Stmt):
    """What `warps` consecutive warps do, with `registers` a thread (0: as launched)."""

    name: str
    warps: int
    registers: int
    body: Block


@dataclass(frozen=True, slots=True)
class Roles(Stmt):
    """The warps of a block shared out in order; together they are all its warps."""

    roles: tuple[Role, ...]


@dataclass(frozen=True, slots=True)
class Op(Stmt):
    """An instruction of `thread.OPS`, with its operands in the table's order and its constant attributes."""

    name: str
    operands: tuple[Expr | Region, ...]
    attributes: tuple[tuple[str, int | str | bool], ...] = ()

    def attribute(self, name: str) -> int | str | bool:
        return dict(self.attributes)[name]


# Debugging


@dataclass(frozen=True, slots=True)
class Print(Stmt):
    """Interpreter: prints. Other back ends refuse it."""

    label: str
    values: tuple[Expr | Buffer, ...]


@dataclass(frozen=True, slots=True)
class Breakpoint(Stmt):
    """Interpreter: opens the debugger with the kernel's names. Other back ends refuse it."""


@dataclass(frozen=True, slots=True)
class Check(Stmt):
    """A fact the author stated with `assert`. Outside launches the host checks it before anything runs."""

    condition: Expr
    message: str


# Whole


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor argument; `result`: made by the host and returned."""

    buffer: Buffer
    written: bool = False
    result: bool = False


@dataclass(frozen=True, slots=True)
class Scalar:
    """A run-time scalar argument: index (Python int), f32 (float) or bool."""

    var: Var


@dataclass(frozen=True, slots=True)
class TensorMap:
    """Thread level: a TMA descriptor that the host encodes. buffer: its name, scope "map". dims: the tensor's dimensions
    it walks, fastest first; box: elements moved at once, in that order; swizzle: bytes, 0 for none."""

    buffer: Buffer
    tensor: Buffer
    dims: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int


Param = Tensor | Scalar | TensorMap


@dataclass(frozen=True, slots=True)
class Function:
    """One specialised kernel. The shape of each tensor argument binds the dimensions that stand in it."""

    name: str
    params: tuple[Param, ...]
    body: Block
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(param for param in self.params if isinstance(param, Tensor))
