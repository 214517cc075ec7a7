"""Expressions: immutable, typed, each with the place it came from (which equality ignores)."""

from dataclasses import dataclass, field

from mortice.tile.diagnostics import NOWHERE, Span
from mortice.tile.dtypes import DType, boolean, index, widened

COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
BINARY = (
    "add",
    "sub",
    "mul",
    "div",
    "floordiv",
    "mod",
    "min",
    "max",
    "and",
    "or",
    "xor",
    "shl",
    "shr",
    *COMPARISONS,
)
UNARY = ("neg", "not", "invert")
MATH = (
    "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tanh", "erf", "sigmoid", "sin", "cos", "abs", "floor", "ceil",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expr:
    """dtype: the type in arithmetic, after widening."""

    dtype: DType
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Const(Expr):
    value: int | float | bool


@dataclass(frozen=True, slots=True)
class Var(Expr):
    """A named scalar: a dimension, a scalar argument, a loop variable, a `Let`. Names are unique in a function."""

    name: str


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    """`floordiv` and `mod` round down, as in Python; `div` is of floats; `and`/`or` are logical on bool, else bitwise."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Unary(Expr):
    op: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Math(Expr):
    """A function of MATH on one float."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Cast(Expr):
    """To `to`, rounded to nearest even and, to a narrow type, widened again: f32(bf16(x)) rounds."""

    value: Expr
    to: DType


@dataclass(frozen=True, slots=True)
class Bitcast(Expr):
    """The same bits as another type of the same width."""

    value: Expr
    to: DType


@dataclass(frozen=True, slots=True)
class Select(Expr):
    """Lazy: only the branch taken loads."""

    condition: Expr
    then: Expr
    otherwise: Expr


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor or a tile. Names are unique in a function.

    scope: "global" (an argument, or `tile.empty`), "shared", "fragment" or "local" (one a thread; at the thread level
    an array of registers). Thread level only: "barrier" (an array of mbarriers) and "map" (a tensor map).
    CPU only: "panels_a", "panels_b", "panels_b_turned", of passes/operands.py.
    shape: constants on chip; on a global tensor also dimensions.
    strides: in elements, None for row-major without gaps. align: as of signature.TensorType.
    """

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    scope: str
    strides: tuple[Expr, ...] | None = None
    align: int = 0
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)

    @property
    def extents(self) -> tuple[int, ...]:
        """Shape of an on-chip buffer."""
        return tuple(int(extent.value) for extent in self.shape if isinstance(extent, Const))

    @property
    def on_chip(self) -> bool:
        return self.scope != "global"


@dataclass(frozen=True, slots=True)
class Load(Expr):
    """One element. Outside a global tensor it reads 0; outside a tile it is an error.

    guards: which dimensions a back end must check; None before the guards pass has decided.
    """

    buffer: Buffer
    indices: tuple[Expr, ...]
    guards: tuple[bool, ...] | None = None


@dataclass(frozen=True, slots=True)
class Call(Expr):
    """Thread level: a value from a function of `thread.FUNCTIONS`, such as `lane()` or `shuffle_xor(x, 1)`."""

    name: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a buffer: offset and extent a dimension; `kept` names the dimensions that remain (an integer index
    drops one, as in NumPy). Not an expression: an operand of tile operators."""

    buffer: Buffer
    offsets: tuple[Expr, ...]
    extents: tuple[Expr, ...]
    kept: tuple[int, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)

    @property
    def shape(self) -> tuple[Expr, ...]:
        return tuple(self.extents[i] for i in self.kept)


def const(value: int | float | bool, dtype: DType = index) -> Const:
    return Const(dtype, value)


def load_type(dtype: DType) -> DType:
    return widened(dtype)


TRUE = Const(boolean, True)
