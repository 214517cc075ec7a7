"""Compiles the C files of this folder once a machine, and keeps the library in the user's cache."""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mortice.specs.cache import cache_folder

FOLDER = Path(__file__).parent
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16")
SECONDS = 120  # that a compiler may take
SWITCH = "MORTICE_KERNELS"  # "torch": do without


class Unavailable(Exception):
    """Why there are no compiled kernels here, with the remedy."""


@functools.cache
def library() -> Path:
    """The shared library for this processor, made if it is not there yet. Raises Unavailable."""
    if os.environ.get(SWITCH) == "torch":
        raise Unavailable(f"switched off by {SWITCH}=torch")
    processor = processor_flags()
    missing = [flag for flag in NEEDED if flag not in processor]
    if missing:
        raise Unavailable(f"this processor lacks {' '.join(missing)}")
    compiler = shutil.which("gcc")
    if compiler is None:
        raise Unavailable("no C compiler: install gcc")
    folder = private_folder(cache_folder() / "kernels")
    path = folder / f"{name_of(compiler, processor)}.so"
    if not path.exists():
        compile_to(path, compiler)
    return path


def reason_without() -> str | None:
    """Why torch does the work of these kernels; None if they are there."""
    try:
        library()
    except Unavailable as error:
        return str(error)
    return None


def processor_flags() -> frozenset[str]:
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return frozenset()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return frozenset(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def sources() -> list[Path]:
    return sorted(FOLDER.glob("*.c"))


def name_of(compiler: str, processor: frozenset[str]) -> str:
    """Changes with everything that the library's bytes hang on."""
    found = os.stat(compiler)
    parts = [compiler, str(found.st_size), str(found.st_mtime_ns), *FLAGS, *sorted(processor)]
    texts = [file.read_text() for file in sorted(FOLDER.glob("*.[ch]"))]
    return hashlib.sha256("\0".join(parts + texts).encode()).hexdigest()[:24]


def private_folder(folder: Path) -> Path:
    """A folder whose files nobody else can have put there: what lies in it is loaded as code."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror}; set MORTICE_HOME to a folder of your own") from error
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Unavailable(f"{folder} is not this user's alone to write: chmod 700, or set MORTICE_HOME")
    return folder


def compile_to(path: Path, compiler: str, flags: Sequence[str] = FLAGS) -> None:
    """Several processes may do so at once: each makes a file of its own and renames it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        command = [compiler, *flags, *map(str, sources()), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{compiler} could not run: {error}") from error
        if done.returncode:
            first = next(
                (line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200]
            )
            raise Unavailable(f"{compiler} failed: {first}")
        made.rename(path)
