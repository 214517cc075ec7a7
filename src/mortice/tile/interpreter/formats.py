"""Bits of the narrow floats, and rounding to every element type."""

import functools

import numpy as np

from mortice.tile import dtypes
from mortice.tile.dtypes import DType

NATIVE = {
    dtypes.f64: np.float64, dtypes.f32: np.float32, dtypes.f16: np.float16, dtypes.i64: np.int64, dtypes.i32: np.int32,
    dtypes.i16: np.int16, dtypes.i8: np.int8, dtypes.u32: np.uint32, dtypes.u16: np.uint16, dtypes.u8: np.uint8,
    dtypes.boolean: np.bool_, dtypes.index: np.int64,
}  # fmt: skip


def arithmetic(dtype: DType) -> type:
    """The NumPy type that holds a value of this type in an expression."""
    return NATIVE[dtypes.widened(dtype)]


def decode(raw: np.ndarray, dtype: DType) -> np.ndarray:
    """Unsigned words of a tensor to values in the type of arithmetic."""
    if dtype == dtypes.bf16:
        widened: np.ndarray = (raw.astype(np.uint32) << 16).view(np.float32)
        return widened
    if dtype in (dtypes.e4m3, dtypes.e5m2):
        fp8: np.ndarray = _fp8_values(dtype)[raw]
        return fp8
    return raw.view(NATIVE[dtype]).astype(arithmetic(dtype))


def encode(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Values to unsigned words, to nearest even; fp8 saturates at its largest number, as the hardware does."""
    if dtype == dtypes.bf16:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
    if dtype in (dtypes.e4m3, dtypes.e5m2):
        return _to_fp8(values, dtype)
    native: np.ndarray = np.ascontiguousarray(np.asarray(values).astype(NATIVE[dtype]))
    raw: np.ndarray = native.view(f"u{native.itemsize}")
    return raw


def rounded(values: np.ndarray, dtype: DType) -> np.ndarray:
    """What is left of the values after storing them as dtype, in the type of arithmetic."""
    if dtype.bits >= 32:
        return np.asarray(values).astype(NATIVE[dtype])
    return decode(encode(np.asarray(values), dtype), dtype)


@functools.cache
def _fp8_values(dtype: DType) -> np.ndarray:
    mantissa, bias = (3, 7) if dtype == dtypes.e4m3 else (2, 15)
    code = np.arange(256)
    exponent, fraction = (code & 0x7F) >> mantissa, code & ((1 << mantissa) - 1)
    scale = np.where(exponent == 0, 1 - bias, exponent - bias).astype(np.float64)
    value = np.ldexp(fraction / (1 << mantissa) + (exponent > 0), scale.astype(int))
    if dtype == dtypes.e4m3:
        value[(code & 0x7F) == 0x7F] = np.nan
    else:
        value[(code & 0x7F) == 0x7C] = np.inf
        value[(code & 0x7F) > 0x7C] = np.nan
    signed: np.ndarray = np.where(code & 0x80, -value, value).astype(np.float32)
    return signed


def _to_fp8(values: np.ndarray, dtype: DType) -> np.ndarray:
    table = _fp8_values(dtype)[:128]
    finite = table[np.isfinite(table)].astype(np.float64)
    x = np.abs(np.asarray(values, np.float64))
    middle = (finite[1:] + finite[:-1]) / 2
    code: np.ndarray = np.searchsorted(middle, x, side="left")
    code = code + ((code < len(middle)) & (x == middle[np.minimum(code, len(middle) - 1)]) & (code % 2 == 1))
    code = np.where(np.isnan(values), 0x7F, code)
    words: np.ndarray = (code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)
    return words
