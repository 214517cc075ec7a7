"""What a kernel may say. These names mean something only inside a function decorated with `tile.kernel`, where the
compiler reads them; called from plain Python they raise.

Placement of data: `empty` makes a tensor that the kernel returns; `shared`, `fragment` and `local` make tiles on the chip.
Operators are synchronous: `copy`, `gemm`, reductions and the rest are done before the next statement begins.
"""

import functools
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from mortice.tile.ir.thread import FUNCTIONS, OPS

F = TypeVar("F", bound=Callable[..., Any])
inf = math.inf


class Tensor:
    """Annotation of a tensor argument. In the kernel it has `shape`, `dtype`, and is indexed or sliced.

    `M, K = A.shape` names dimensions; a name given twice says that both are equal, which calls check.
    """

    shape: Any
    dtype: Any

    def __getitem__(self, key: Any) -> Any:
        raise TypeError("tile.Tensor is for annotations of kernel arguments")

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("tile.Tensor is for annotations of kernel arguments")


def construct(function: F) -> F:
    @functools.wraps(function)
    def outside(*args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"tile.{function.__name__} has a meaning only inside a function decorated with @tile.kernel"
        )

    outside.__dict__["construct"] = function.__name__
    return outside  # type: ignore[return-value]


def inline(function: F) -> F:
    """A function whose body is put in place of each call from a kernel, with names of its own."""
    function.__dict__["tile_inline"] = True
    return function


# Loops; a plain `range` is a serial loop


@construct
def grid(*extents: Any, threads: int | None = None, panel: int = 0, cluster: int = 1) -> Iterable[Any]:
    """`for i, j in grid(gi, gj)`: independent blocks, each with a chip's memory of its own.

    threads: of a block (None: the compiler chooses). panel: block rows walked together for the cache's sake.
    """
    raise NotImplementedError


@construct
def parallel(*extents: Any) -> Iterable[Any]:
    """`for i, j in parallel(m, n)`: independent element-wise iterations. Inside a grid a loop over tiles; outside one the
    compiler makes grid, tiles and stages of it (the beginner's level)."""
    raise NotImplementedError


@construct
def pipelined(*ends: Any, stages: int = 2) -> Iterable[Any]:
    """Like `range` of one or two ends; copies of up to `stages` iterations may be in flight."""
    raise NotImplementedError


@construct
def unroll(n: int) -> Iterable[Any]:
    """n copies of the body, the loop variable a constant in each."""
    raise NotImplementedError


# Tiles and tensors


@construct
def empty(shape: Any, dtype: Any) -> Any:
    """A tensor made by the host, to be returned. Only outside a grid."""
    raise NotImplementedError


@construct
def shared(shape: Any, dtype: Any, fill: Any = None) -> Any:
    """A tile that all threads of a block see. Uninitialised unless filled."""
    raise NotImplementedError


@construct
def fragment(shape: Any, dtype: Any, fill: Any = None) -> Any:
    """A tile spread over the registers of a block's threads; written and read as one array."""
    raise NotImplementedError


@construct
def local(shape: Any, dtype: Any, fill: Any = None) -> Any:
    """An array of one thread (of one iteration, in a parallel loop)."""
    raise NotImplementedError


# Tile operators


@construct
def copy(source: Any, target: Any, *, pad: Any = 0, prefer: str = "auto") -> None:
    """target = source, cast. `A[i:, j]` is a box that begins at i and takes its extent from the other side. Outside a
    tensor `pad` is read and nothing is written. prefer: "tma", "cp_async" or "plain" insist on an instruction."""
    raise NotImplementedError


@construct
def fill(target: Any, value: Any) -> None:
    """Every element of a tile or box becomes value."""
    raise NotImplementedError


@construct
def gemm(a: Any, b: Any, c: Any, *, clear: bool = False) -> None:
    """c += a @ b (c = a @ b with clear). `x.T` is the transposed view of an operand. c is f32 (i32 for integers)."""
    raise NotImplementedError


@construct
def reduce_sum(source: Any, target: Any, *, axis: int = -1, clear: bool = True) -> None:
    """target = sum over one axis; without clear, the old target is added."""
    raise NotImplementedError


@construct
def reduce_max(source: Any, target: Any, *, axis: int = -1, clear: bool = True) -> None:
    """target = maximum over one axis; without clear, the old target takes part. NaN is ignored unless all are."""
    raise NotImplementedError


@construct
def reduce_min(source: Any, target: Any, *, axis: int = -1, clear: bool = True) -> None:
    """target = minimum over one axis; without clear, the old target takes part."""
    raise NotImplementedError


@construct
def reduce_absmax(source: Any, target: Any, *, axis: int = -1, clear: bool = True) -> None:
    """target = largest magnitude over one axis; without clear, the old target takes part."""
    raise NotImplementedError


@construct
def cumsum(source: Any, target: Any, *, axis: int = -1, reverse: bool = False) -> None:
    """Inclusive running sum along one axis."""
    raise NotImplementedError


@construct
def cummax(source: Any, target: Any, *, axis: int = -1, reverse: bool = False) -> None:
    """Inclusive running maximum along one axis."""
    raise NotImplementedError


@construct
def atomic_add(target: Any, value: Any) -> None:
    """target[i, j] += value, indivisibly. The order of float additions is not fixed."""
    raise NotImplementedError


@construct
def atomic_max(target: Any, value: Any) -> None:
    """target[i, j] = max(target[i, j], value), indivisibly."""
    raise NotImplementedError


@construct
def atomic_min(target: Any, value: Any) -> None:
    """target[i, j] = min(target[i, j], value), indivisibly."""
    raise NotImplementedError


# Folds over generators, the beginner's level: `tile.sum(A[m, k] * B[k, n] for k in range(K) if k <= m)`. Python's own
# `sum`, `max`, `min`, `any`, `all` of a generator mean the same.


@construct
def sum(values: Any) -> Any:
    """The sum of a generator's values; 0 of none."""
    raise NotImplementedError


@construct
def max(values: Any) -> Any:
    """The largest of a generator's values; -inf of none. (Of two numbers: Python's `max(a, b)`.)"""
    raise NotImplementedError


@construct
def min(values: Any) -> Any:
    """The smallest of a generator's values; inf of none."""
    raise NotImplementedError


@construct
def any(values: Any) -> Any:
    """Whether one of a generator's conditions holds."""
    raise NotImplementedError


@construct
def all(values: Any) -> Any:
    """Whether each of a generator's conditions holds."""
    raise NotImplementedError


# Threads: the expert's level, mixed freely with the operators above


class Thread:
    """`tile.thread.NAME(...)`: one instruction or function of `mortice.tile.ir.thread`, operands in its table's order, its
    attributes by name."""

    def __dir__(self) -> list[str]:
        return [*OPS, *FUNCTIONS]

    def __getattr__(self, name: str) -> Any:
        if name not in OPS and name not in FUNCTIONS:
            raise AttributeError(f"the thread level has no {name}; mortice.tile.ir.thread lists what it has")
        return ThreadConstruct(name)


@dataclass(frozen=True, slots=True)
class ThreadConstruct:
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"tile.thread.{self.name} has a meaning only inside a function decorated with @tile.kernel"
        )


thread = Thread()


@construct
def role(name: str, *, warps: int, registers: int = 0) -> AbstractContextManager[None]:
    """`with role("load", warps=4, registers=40):` what the next warps of the block do. Roles that follow each other share
    out all warps. registers: a thread, 24 to 256 in steps of 8 (0: as launched)."""
    raise NotImplementedError


@construct
def barrier(phases: int, *, count: int) -> Any:
    """An array of mbarriers in shared memory, each completed by `count` arrivals."""
    raise NotImplementedError


@construct
def view(source: Any, dtype: Any) -> Any:
    """The same bytes as elements of another type: u8 or i8 as i4, u4, i2, u2, u1 or e2m1 (the first element in the lowest
    bits; the last dimension counts more of them), 32-bit types as one another, u16 as bf16. Read element by element or by
    `copy`; stores go through views of equal width."""
    raise NotImplementedError


@construct
def panels(source: Any) -> Any:
    """W [N, K] of a bf16 tensor [N / 32, K / 32, 1024] that holds it in the order of a CPU's matrix unit, as
    `mortice.ops.kernels.panels.pack_panels` makes it. Read element by element or by `copy`; a tile that only `gemm` reads,
    as `w.T`, is then read where it lies. Stores go to the tensor itself."""
    raise NotImplementedError


# Scalars. Python's min, max, abs, ternary, and/or/not work too; f32(x), bf16(x), i32(x) cast.


@construct
def bitcast(value: Any, dtype: Any) -> Any:
    """The same bits read as another type of the same width."""
    raise NotImplementedError


def ceildiv(a: Any, b: Any) -> Any:
    """a / b rounded up; also in plain Python."""
    return -(-a // b)


@construct
def exp(x: Any) -> Any:
    """e to the x."""
    raise NotImplementedError


@construct
def exp2(x: Any) -> Any:
    """2 to the x."""
    raise NotImplementedError


@construct
def log(x: Any) -> Any:
    """Natural logarithm."""
    raise NotImplementedError


@construct
def log2(x: Any) -> Any:
    """Logarithm to base 2."""
    raise NotImplementedError


@construct
def sqrt(x: Any) -> Any:
    """Square root."""
    raise NotImplementedError


@construct
def rsqrt(x: Any) -> Any:
    """1 / sqrt(x)."""
    raise NotImplementedError


@construct
def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    raise NotImplementedError


@construct
def erf(x: Any) -> Any:
    """Error function."""
    raise NotImplementedError


@construct
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    raise NotImplementedError


@construct
def sin(x: Any) -> Any:
    """Sine of radians."""
    raise NotImplementedError


@construct
def cos(x: Any) -> Any:
    """Cosine of radians."""
    raise NotImplementedError


@construct
def floor(x: Any) -> Any:
    """Rounded down, a float."""
    raise NotImplementedError


@construct
def ceil(x: Any) -> Any:
    """Rounded up, a float."""
    raise NotImplementedError
