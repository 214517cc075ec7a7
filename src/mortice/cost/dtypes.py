"""Bytes of an element by dtype, with the scales that block formats carry."""

from mortice.specs.errors import RequestError

BYTES: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4 / (128 * 128),  # one FP32 scale a block of 128 x 128 weights
    "int8": 1.0,
    "fp4": 0.5,
    "nvfp4": 0.5 + 1 / 16,  # one FP8 scale every 16 elements
    "mxfp4": 0.5 + 1 / 32,  # one exponent byte every 32 elements
    "int4": 0.5,
}
ARITHMETIC = {
    "fp8_block": "fp8",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
    "fp16": "bf16",
    "int4": "bf16",
}  # peak it runs at


def dtype_bytes(dtype: str) -> float:
    """Bytes an element takes in memory. Raises RequestError for an unknown dtype."""
    if dtype not in BYTES:
        raise RequestError(f"dtype {dtype!r} is not known; known are {', '.join(BYTES)}", param="dtype")
    return BYTES[dtype]


def arithmetic_dtype(dtype: str) -> str:
    """The dtype whose peak a product of such weights runs at."""
    dtype_bytes(dtype)
    return ARITHMETIC.get(dtype, dtype)
