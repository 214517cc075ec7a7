"""CUDA text to machine code in this process: NVRTC through ctypes. No GPU and no driver are needed."""

import ctypes
import functools
import glob
import hashlib
import os
import sys
import tempfile
from pathlib import Path

from mortice.tile.c.build import cache_folder
from mortice.tile.diagnostics import NOWHERE, UnsupportedError

LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
FOLDERS = ("nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib")
OPTIONS = ("-std=c++17", "--ptxas-options=-v", "-default-device")


def cubin(source: str, architecture: str) -> bytes:
    """Machine code for an architecture such as "sm_90a", from the cache if it was made before. Raises UnsupportedError
    where there is no NVRTC."""
    path = cache_folder() / f"{key(source, architecture)}.cubin"
    if path.exists():
        return path.read_bytes()
    code, _ = compile_text(source, architecture)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
        scratch.write(code)
    os.replace(scratch.name, path)
    return code


def key(source: str, architecture: str) -> str:
    """Changes with everything that the code's bytes hang on."""
    parts = (source, architecture, *OPTIONS, str(version()))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def compile_text(source: str, architecture: str) -> tuple[bytes, str]:
    """Machine code, and what the compiler said (registers, spills, advisories). For a virtual architecture such as
    "compute_90a" the code is PTX."""
    lib = library()
    kind = "PTX" if architecture.startswith("compute_") else "CUBIN"
    size, code = getattr(lib, f"nvrtcGet{kind}Size"), getattr(lib, f"nvrtcGet{kind}")
    program = ctypes.c_void_p()
    _check(lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        options = [f"--gpu-architecture={architecture}", *OPTIONS]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = lib.nvrtcCompileProgram(program, len(options), array)
        log = (
            _read(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog, program)
            .decode(errors="replace")
            .strip("\0\n")
        )
        if status:
            errors = [line for line in log.splitlines() if "error" in line]
            raise RuntimeError(f"the generated CUDA does not compile: {errors[0] if errors else log[:300]}")
        return _read(size, code, program), log
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


@functools.cache
def library() -> ctypes.CDLL:
    """From the wheel nvidia-cuda-nvrtc (or torch's), else as the system finds it."""
    places = [
        found
        for root in sys.path
        for folder in FOLDERS
        for name in LIBRARIES
        for found in glob.glob(str(Path(root) / folder / name))
    ]
    for place in (*places, *LIBRARIES, *glob.glob("/usr/local/cuda*/lib64/libnvrtc.so")):
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise UnsupportedError(NOWHERE, "CUDA back end", "there is no NVRTC", "pip install nvidia-cuda-nvrtc")


def available() -> bool:
    try:
        library()
    except UnsupportedError:
        return False
    return True


def _read(size, content, program) -> bytes:  # type: ignore[no-untyped-def]
    length = ctypes.c_size_t()
    _check(size(program, ctypes.byref(length)))
    out = ctypes.create_string_buffer(length.value)
    _check(content(program, out))
    return out.raw


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"NVRTC: error {status}")
