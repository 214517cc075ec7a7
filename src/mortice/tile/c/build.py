"""Compiles generated C once a machine and keeps the library in the user's cache."""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from mortice.tile.diagnostics import NOWHERE, UnsupportedError

FOLDER = Path(__file__).parent
HEADERS = ("prelude.h", "gemm.h")
FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math",
    "-fno-signed-zeros", "-fopenmp", "-fPIC", "-shared", "-w",
)  # fmt: skip
SECONDS = 120  # that the compiler may take


def library(source: str) -> Path:
    """The shared library of a source, made if it is not there. Raises UnsupportedError."""
    compiler = find_compiler()
    folder = cache_folder()
    path = folder / f"{key(source, compiler)}.so"
    if not path.exists():
        _compile(source, compiler, path)
    return path


def cache_folder() -> Path:
    """`tile` in the user's cache; a folder that nobody else can write, for it holds code."""
    root = os.environ.get("MORTICE_HOME")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mortice"
    folder = (Path(root) if root else usual) / "tile"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError as error:
        raise _unavailable(
            f"{folder}: {error.strerror}", "set MORTICE_HOME to a folder of your own"
        ) from error
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise _unavailable(f"others can write {folder}", f"chmod 700 {folder}, or set MORTICE_HOME")
    return folder


@functools.cache
def find_compiler() -> str:
    compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")
    if compiler is None:
        raise _unavailable("there is no C compiler", "install gcc")
    return compiler


def key(source: str, compiler: str) -> str:
    """Changes with everything that the library's bytes hang on."""
    return hashlib.sha256("\0".join([source, *_surroundings(compiler)]).encode()).hexdigest()[:32]


@functools.cache
def _surroundings(compiler: str) -> tuple[str, ...]:
    found = os.stat(os.path.realpath(compiler))
    headers = [(FOLDER / name).read_text() for name in HEADERS]
    return (compiler, str(found.st_size), str(found.st_mtime_ns), *FLAGS, _processor(), *headers)


def packs_bf16() -> bool:
    """Whether compiled code multiplies bf16 as it is (PANELS_BF16 of gemm.h), in AMX or in AVX-512."""
    flags = set(_processor().split())
    return {"avx512bw", "avx512dq", "avx512vl"} <= flags and bool({"amx_bf16", "avx512_bf16"} & flags)


@functools.cache
def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = info.read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _compile(source: str, compiler: str, path: Path) -> None:
    """Several processes may do so at once: each makes a file of its own and renames it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        text, made = Path(scratch) / "kernel.c", Path(scratch) / path.name
        text.write_text(source)
        command = [compiler, *FLAGS, "-I", str(FOLDER), str(text), "-o", str(made), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _unavailable(f"{compiler} could not run: {error}", "mend the compiler") from error
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise RuntimeError(f"the generated C does not compile: {first}")
        made.rename(path)


def _unavailable(problem: str, remedy: str) -> UnsupportedError:
    return UnsupportedError(NOWHERE, "C back end", problem, remedy)
