"""What one specialisation of a kernel is made for: types of the arguments, values of the constants."""

from dataclasses import dataclass

from mortice.tile.dtypes import DType


@dataclass(frozen=True, slots=True)
class TensorType:
    """contiguous: row-major without gaps. unit_inner: the last stride is 1. align: bytes of which the base address
    and every other stride are multiples, 16 (TMA's condition) or 0 if that was not looked at or does not hold; only
    GPU targets look."""

    dtype: DType
    rank: int
    contiguous: bool = True
    unit_inner: bool = True
    align: int = 0


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
