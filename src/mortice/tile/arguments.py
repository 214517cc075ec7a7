"""Tensors of a call, seen without copying: torch tensors and NumPy arrays by address, shape and strides.

torch is never imported here; a torch tensor brings it.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from mortice.tile import dtypes
from mortice.tile.dtypes import DType
from mortice.tile.signature import TensorType

NAMES: dict[str, DType] = {
    "float64": dtypes.f64, "float32": dtypes.f32, "float16": dtypes.f16, "bfloat16": dtypes.bf16,
    "float8_e4m3fn": dtypes.e4m3, "float8_e5m2": dtypes.e5m2, "int64": dtypes.i64, "int32": dtypes.i32,
    "int16": dtypes.i16, "int8": dtypes.i8, "uint32": dtypes.u32, "uint16": dtypes.u16, "uint8": dtypes.u8,
    "bool": dtypes.boolean,
}  # fmt: skip
FOREIGN = {dtype: name for name, dtype in NAMES.items()}
RAW = {1: "u1", 2: "u2", 4: "u4", 8: "u8"}


@dataclass(frozen=True, slots=True)
class Argument:
    """strides in elements. owner: the tensor itself, which keeps the memory alive."""

    pointer: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device: str
    writable: bool
    owner: Any

    def type(self, look_at_alignment: bool = False) -> TensorType:
        contiguous = is_contiguous(self.shape, self.strides)
        unit = contiguous or not self.strides or self.strides[-1] == 1
        align = 16 if look_at_alignment and self._aligned(16) else 0
        return TensorType(self.dtype, len(self.shape), contiguous, unit, align)

    def _aligned(self, bytes: int) -> bool:
        outer = [stride for stride, extent in zip(self.strides[:-1], self.shape, strict=False) if extent > 1]
        return self.pointer % bytes == 0 and all(
            stride * self.dtype.bits // 8 % bytes == 0 for stride in outer
        )

    def raw(self) -> np.ndarray:
        """The memory itself as an array of unsigned words. CPU only."""
        return np.asarray(_Memory(self))


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor without data: what a kernel is compiled for where there is none. Row-major, aligned."""

    shape: tuple[int, ...]
    dtype: DType


class _Memory:
    def __init__(self, argument: Argument) -> None:
        width = argument.dtype.bytes
        pointer = argument.pointer if argument.pointer else _NOTHING.ctypes.data
        self.owner = argument.owner
        self.__array_interface__ = {
            "version": 3, "data": (pointer, not argument.writable), "shape": argument.shape, "typestr": f"<{RAW[width]}",
            "strides": tuple(stride * width for stride in argument.strides),
        }  # fmt: skip


_NOTHING = np.zeros(1)  # where an empty tensor points


def is_tensor(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "data_ptr")


def view(value: Any) -> Argument:
    """Raises TypeError for what is no torch tensor or NumPy array, or has an element type the language lacks."""
    if isinstance(value, Spec):
        strides = tuple(math.prod(value.shape[i + 1 :]) for i in range(len(value.shape)))
        return Argument(0, value.dtype, value.shape, strides, "cpu", True, value)
    if isinstance(value, np.ndarray):
        dtype = NAMES.get(value.dtype.name)
        if dtype is None:
            raise TypeError(f"its element type is {value.dtype.name}")
        width = dtype.bytes
        if any(stride % width for stride in value.strides):
            raise TypeError("its strides are no multiples of its element size")
        strides = tuple(stride // width for stride in value.strides)
        return Argument(value.ctypes.data, dtype, value.shape, strides, "cpu", value.flags.writeable, value)
    if not hasattr(value, "data_ptr"):
        raise TypeError(f"it is of type {type(value).__name__}")
    name = str(value.dtype).removeprefix("torch.")
    dtype = NAMES.get(name)
    if dtype is None:
        raise TypeError(f"its element type is {name}")
    device = value.device.type
    return Argument(value.data_ptr(), dtype, tuple(value.shape), value.stride(), device, True, value)


def make(shape: tuple[int, ...], dtype: DType, like: Any) -> Any:
    """An uninitialised tensor of the same library and device as `like`."""
    if isinstance(like, np.ndarray):
        if dtype.is_float and dtype.bits < 32 and dtype != dtypes.f16:
            if like.dtype.name != FOREIGN[dtype]:
                raise TypeError(f"NumPy has no {dtype}; pass out=")
            return np.empty(shape, like.dtype)
        return np.empty(shape, FOREIGN[dtype])
    torch = sys.modules["torch"]
    return torch.empty(shape, dtype=getattr(torch, FOREIGN[dtype]), device=like.device)


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Row-major without gaps; what is empty has none."""
    if 0 in shape:
        return True
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True
