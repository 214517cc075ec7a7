"""Element types of tensors and tiles, and the rules of arithmetic between them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One element type. In a kernel `f32(x)` casts.

    kind: "f" float, "i" signed, "u" unsigned, "b" bool, "x" index (64 bits on a CPU; a GPU back end may narrow it).
    """

    name: str
    bits: int
    kind: str

    def __repr__(self) -> str:
        return self.name

    def __call__(self, value: object) -> object:
        raise TypeError(f"{self.name}(...) casts inside a kernel; it does nothing in plain Python")

    @property
    def bytes(self) -> int:
        """Bytes of one element. Raises ValueError for elements smaller than a byte."""
        if self.bits % 8:
            raise ValueError(f"{self.name} is smaller than a byte")
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iux"


f64 = DType("f64", 64, "f")
f32 = DType("f32", 32, "f")
f16 = DType("f16", 16, "f")
bf16 = DType("bf16", 16, "f")
e4m3 = DType("e4m3", 8, "f")  # OCP FP8 E4M3FN: no infinities, largest 448
e5m2 = DType("e5m2", 8, "f")
i64 = DType("i64", 64, "i")
i32 = DType("i32", 32, "i")
i16 = DType("i16", 16, "i")
i8 = DType("i8", 8, "i")
i4 = DType("i4", 4, "i")
u32 = DType("u32", 32, "u")
u16 = DType("u16", 16, "u")
u8 = DType("u8", 8, "u")
u4 = DType("u4", 4, "u")
i2 = DType("i2", 2, "i")
u2 = DType("u2", 2, "u")
u1 = DType("u1", 1, "u")
e2m1 = DType("e2m1", 4, "f")  # OCP FP4
boolean = DType("bool", 8, "b")
index = DType("index", 64, "x")

ALL = (
    f64,
    f32,
    f16,
    bf16,
    e4m3,
    e5m2,
    i64,
    i32,
    i16,
    i8,
    i4,
    u32,
    u16,
    u8,
    u4,
    i2,
    u2,
    u1,
    e2m1,
    boolean,
    index,
)
BY_NAME = {dtype.name: dtype for dtype in ALL}


def widened(dtype: DType) -> DType:
    """The type in which a loaded element takes part in arithmetic: narrow floats are storage only (f32 in
    expressions), so are narrow integers (i32)."""
    if dtype.is_float:
        return dtype if dtype.bits >= 32 else f32
    if dtype.kind in "iu" and dtype.bits < 32:
        return i32
    return dtype


def joined(a: DType, b: DType) -> DType:
    """The type of `x + y`: float before integer, wide before narrow, index before i32. i64 and u32 with index give
    index."""
    if a == b:
        return a
    if a.is_float or b.is_float:
        if a.is_float and b.is_float:
            return a if a.bits >= b.bits else b
        return a if a.is_float else b
    for wide in (index, i64, u32):
        if wide in (a, b):
            return wide
    return i32
