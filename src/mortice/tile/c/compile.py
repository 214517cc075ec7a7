"""A function of tile IR as a function to call on the CPU."""

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

from mortice.tile.c.build import library
from mortice.tile.c.emit import Emitter, real_names, whole_names
from mortice.tile.host import Bound
from mortice.tile.ir.stmt import Function
from mortice.tile.passes import run
from mortice.tile.passes.guards import GUARDS

PASSES = (GUARDS,)


def compile_function(function: Function) -> "Compiled":
    """Raises UnsupportedError if there is no compiler, or the kernel has what C cannot do."""
    source = Emitter(run(function, PASSES)).source()
    entry = ctypes.CDLL(str(library(source))).kernel
    entry.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    names = tuple(param.buffer.name for param in function.tensors)
    return Compiled(source, entry, names, tuple(whole_names(function)), tuple(real_names(function)))


@dataclass
class Compiled:
    source: str
    entry: Any
    tensors: tuple[str, ...]
    whole: tuple[str, ...]
    real: tuple[str, ...]

    def __call__(self, bound: Bound) -> None:
        pointers = (ctypes.c_void_p * len(self.tensors))(
            *(bound.tensors[name].pointer for name in self.tensors)
        )
        whole = (ctypes.c_int64 * len(self.whole))(*(int(bound.dims[name]) for name in self.whole))
        real = (ctypes.c_double * len(self.real))(*(float(bound.dims[name]) for name in self.real))
        if self.entry(pointers, whole, real, threads()):
            raise MemoryError("a thread of the kernel got no memory for its tiles")


def threads() -> int:
    """As many as torch uses if it is loaded, else as many as this process may run on."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
