"""What one specialisation of a kernel is made for: types of the arguments, values of the constants."""

from dataclasses import dataclass

from mortice.tile.dtypes import DType


@dataclass(frozen=True, slots=True)
class TensorType:
    """contiguous: row-major without gaps. unit_inner: the last stride is 1. pitch16: base address and every other
    stride are multiples of 16 bytes (TMA's condition; computed for GPU targets only)."""

    dtype: DType
    rank: int
    contiguous: bool = True
    unit_inner: bool = True
    pitch16: bool = False


@dataclass(frozen=True, slots=True)
class ScalarType:
    dtype: DType


ArgumentType = TensorType | ScalarType | None
Constant = int | float | bool | str | DType | tuple | None


@dataclass(frozen=True, slots=True)
class Signature:
    """shapes: what the call that asked for this has; only dimensions that size a tile are taken from it."""

    arguments: tuple[tuple[str, ArgumentType], ...]
    constants: tuple[tuple[str, Constant], ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
