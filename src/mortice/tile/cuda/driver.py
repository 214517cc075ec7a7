"""The CUDA driver through ctypes: modules, tensor maps, launches."""

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

from mortice.tile.diagnostics import NOWHERE, UnsupportedError

MAX_DYNAMIC_SHARED = 8  # CUfunction_attribute
MULTIPROCESSORS, MAJOR, MINOR = 16, 75, 76  # CUdevice_attribute
MAP_TYPES = {
    "u8": 0, "i8": 0, "e4m3": 0, "e5m2": 0, "bool": 0, "u16": 1, "i16": 1, "u32": 2, "i32": 3, "i64": 5, "f16": 6,
    "f32": 7, "f64": 8, "bf16": 9,
}  # fmt: skip
MAP_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
L2_PROMOTION_128 = 2
MAP_BYTES = 128
NO_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT
DEPENDENT = (
    6  # CUlaunchAttributeID: the next kernel of the stream may begin before this one ends, and waits inside
)


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: a number, then 64 bytes of which each attribute uses some."""

    _fields_ = (("id", ctypes.c_int), ("_pad", ctypes.c_int), ("value", ctypes.c_int * 16))


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("blocks", ctypes.c_uint * 3), ("threads", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(LaunchAttribute)), ("count", ctypes.c_uint),
    )  # fmt: skip


def launch_config(blocks: int, threads: int, shared: int, stream: int, dependent: bool) -> LaunchConfig:
    """dependent: the kernel waits itself for what ran before it in the stream (griddepcontrol.wait)."""
    config = LaunchConfig((blocks, 1, 1), (threads, 1, 1), shared, stream)
    if dependent:
        config.attributes = (LaunchAttribute * 1)(LaunchAttribute(DEPENDENT, 0, (1,)))
        config.count = 1
    return config


@functools.cache
def driver() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise UnsupportedError(
            NOWHERE, "CUDA back end", "there is no CUDA driver", "run on a machine with a GPU"
        ) from None
    lib.cuGetErrorString.argtypes = (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
    lib.cuLaunchKernelEx.argtypes = (ctypes.c_void_p,) * 4
    check(lib.cuInit(0))
    return lib


def check(status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA: {(text.value or b'unknown error').decode()} ({status})")


def start(config: int, function: Any, arguments: int) -> None:
    """A launch; where the thread has no context yet, once more in the device's primary one."""
    status = driver().cuLaunchKernelEx(config, function, arguments, None)
    if status == NO_CONTEXT:
        enter()
        status = driver().cuLaunchKernelEx(config, function, arguments, None)
    check(status)


def enter() -> None:
    """Makes the first device's primary context current where the thread has none."""
    context = ctypes.c_void_p()
    check(driver().cuCtxGetCurrent(ctypes.byref(context)))
    if not context.value:
        check(driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
        check(driver().cuCtxSetCurrent(context))


def device() -> int:
    current = ctypes.c_int()
    check(driver().cuCtxGetDevice(ctypes.byref(current)))
    return current.value


@functools.cache
def attribute(number: int, of: int) -> int:
    value = ctypes.c_int()
    check(driver().cuDeviceGetAttribute(ctypes.byref(value), number, of))
    return value.value


def architecture() -> str:
    enter()
    current = device()
    major, minor = attribute(MAJOR, current), attribute(MINOR, current)
    return f"sm_{major}{minor}" + ("a" if major == 9 else "")


def load(code: bytes, names: tuple[str, ...], shared: tuple[int, ...]) -> list[ctypes.c_void_p]:
    """The functions of a module; they may use `shared` bytes of dynamic shared memory each."""
    enter()
    module = ctypes.c_void_p()
    check(driver().cuModuleLoadData(ctypes.byref(module), code))
    functions = []
    for name, bytes in zip(names, shared, strict=True):
        function = ctypes.c_void_p()
        check(driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
        if bytes > 48 * 1024:
            check(driver().cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, bytes))
        functions.append(function)
    return functions


def stream() -> int:
    """torch's current stream if torch uses the card, else the default one."""
    now = stream_of_torch()
    return now() if now is not None else 0


def stream_of_torch() -> Callable[[], int] | None:
    """Gives torch's current stream; None while torch does not use the card."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    of_device, device = torch._C._cuda_getCurrentRawStream, torch._C._cuda_getDevice
    return lambda: of_device(device())


def encode_map(
    into: int,
    kind: str,
    pointer: int,
    dims: list[int],
    strides: list[int],
    box: tuple[int, ...],
    swizzle: int,
) -> None:
    """into: address of 128 bytes, 64-byte aligned. dims, box: fastest first; strides: bytes of all but the fastest."""
    rank = len(dims)
    sizes = (ctypes.c_uint64 * rank)(*dims)
    steps = (ctypes.c_uint64 * max(rank - 1, 1))(*strides)
    boxes = (ctypes.c_uint32 * rank)(*box)
    ones = (ctypes.c_uint32 * rank)(*([1] * rank))
    status = driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(into), MAP_TYPES[kind], rank, ctypes.c_void_p(pointer), sizes, steps, boxes, ones, 0,
        MAP_SWIZZLES[swizzle], L2_PROMOTION_128, 0,
    )  # fmt: skip
    check(status)
