"""How element types and identifiers are spelled in C."""

from mortice.tile import dtypes
from mortice.tile.dtypes import DType

TYPES = {
    dtypes.f64: "double", dtypes.f32: "float", dtypes.f16: "f16", dtypes.bf16: "bf16", dtypes.e4m3: "e4m3",
    dtypes.e5m2: "e5m2", dtypes.i64: "int64_t", dtypes.i32: "int32_t", dtypes.i16: "int16_t", dtypes.i8: "int8_t",
    dtypes.u32: "uint32_t", dtypes.u16: "uint16_t", dtypes.u8: "uint8_t", dtypes.boolean: "uint8_t",
    dtypes.index: "int64_t",
}  # fmt: skip
CONVERTED = (dtypes.f16, dtypes.bf16, dtypes.e4m3, dtypes.e5m2)  # through from_* and to_*


def storage(dtype: DType) -> str:
    """The C type of an element in memory."""
    return TYPES[dtype]


def value(dtype: DType) -> str:
    """The C type of a value of this type in arithmetic."""
    return TYPES[dtypes.widened(dtype)]


def name(identifier: str) -> str:
    """Kernel names end in an underscore: they meet no word of C or of the prelude."""
    return f"{identifier}_"


def loaded(text: str, dtype: DType) -> str:
    return (
        f"from_{dtype}({text})"
        if dtype in CONVERTED
        else f"({value(dtype)}){text}"
        if dtype.bits < 32
        else text
    )


def stored(text: str, dtype: DType) -> str:
    return f"to_{dtype}({text})" if dtype in CONVERTED else f"({storage(dtype)})({text})"
