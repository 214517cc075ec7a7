"""A function of tile IR as a function to call on the CPU."""

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from mortice.tile.c.build import library, packs_bf16
from mortice.tile.c.checks import Site
from mortice.tile.c.emit import Emitter, whole_names
from mortice.tile.host import Bound
from mortice.tile.ir import stmt as s
from mortice.tile.launch import Shortcut
from mortice.tile.passes import run
from mortice.tile.passes.cpu import cpu_passes

NO_MEMORY = -1


def compile_function(function: s.Function) -> "Compiled":
    """Raises UnsupportedError if there is no compiler, or the kernel has what C cannot do."""
    emitter = _emitter(function)
    source = emitter.source()
    entry = ctypes.CDLL(str(library(source))).kernel
    kinds = [_ctype(param) for param in function.params]
    entry.argtypes = (*kinds, ctypes.c_void_p, ctypes.c_int)
    params = tuple(p.var.name if isinstance(p, s.Scalar) else p.buffer.name for p in function.params)
    return Compiled(source, entry, params, tuple(whole_names(function)), tuple(emitter.checks.sites))


def emit_function(function: s.Function) -> str:
    """The C alone, for which no compiler is needed."""
    return _emitter(function).source()


def _emitter(function: s.Function) -> Emitter:
    return Emitter(run(function, cpu_passes(packs_bf16())))


def _ctype(param: s.Param) -> type:
    if isinstance(param, s.Scalar):
        return ctypes.c_float if param.var.dtype.is_float else ctypes.c_int64
    return ctypes.c_void_p


@dataclass
class Compiled:
    """entry: parameters in order (addresses, whole and real scalars), then dimensions and strides, then threads."""

    source: str
    entry: Any
    params: tuple[str, ...]
    whole: tuple[str, ...]
    sites: tuple[Site, ...]

    def __call__(self, bound: Bound) -> None:
        values = [
            bound.tensors[name].pointer if name in bound.tensors else bound.dims[name] for name in self.params
        ]
        code = self.entry(*values, self.dimensions(bound), self.threads())
        if code:
            raise self.failed(code)

    def dimensions(self, bound: Bound) -> Any:
        """Of these shapes: the same object serves every call with them."""
        return (ctypes.c_int64 * len(self.whole))(*(int(bound.dims[name]) for name in self.whole))

    def shortcut(self, bound: Bound) -> Shortcut:
        return Shortcut(self.entry, self.dimensions(bound), self.threads, self.fail)

    def fail(self, code: int) -> NoReturn:
        raise self.failed(code)

    def failed(self, code: int) -> Exception:
        """What a code other than 0 means."""
        if code == NO_MEMORY:
            return MemoryError("a thread of the kernel got no memory for its tiles")
        return self.sites[code - 1].error()

    @property
    def threads(self) -> Callable[[], int]:
        """How many threads to use: as many as torch does if it is loaded, else as many as this process may run on."""
        return thread_count()


def thread_count() -> Callable[[], int]:
    torch = sys.modules.get("torch")
    if torch is not None:
        function: Callable[[], int] = torch.get_num_threads
        return function
    return processors


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
