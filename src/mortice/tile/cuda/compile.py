"""A function of tile IR as a function to call on a GPU."""

import ctypes
import math
import threading
from dataclasses import dataclass, field
from typing import Any

from mortice.tile.arguments import Argument
from mortice.tile.cuda import driver
from mortice.tile.cuda.emit import Kernel, emit
from mortice.tile.cuda.nvrtc import cubin
from mortice.tile.diagnostics import ArgumentError, UnsupportedError
from mortice.tile.dtypes import i32
from mortice.tile.host import Bound
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.evaluate import Number, evaluate
from mortice.tile.ir.walk import transform
from mortice.tile.passes.gpu.context import Note
from mortice.tile.passes.gpu.lower import Choices, lower

ARCHITECTURE = "sm_90a"
LARGEST = 2**31 - 1
MAPS_KEPT = 64


def compile_function(function: s.Function, choices: Choices = Choices()) -> "Compiled":
    """Nothing is compiled yet where results need to be looked at; machine code is made on the first call."""
    return Compiled(function, choices)


@dataclass
class Variant:
    """Of one alignment of the results."""

    lowered: s.Function
    notes: tuple[Note, ...]
    source: str
    kernels: tuple[Kernel, ...]
    functions: list[Any] = field(default_factory=list)

    def code(self, architecture: str = ARCHITECTURE) -> bytes:
        return cubin(self.source, architecture)


@dataclass
class Compiled:
    """Calls are safe from several threads; each has argument blocks of its own."""

    function: s.Function
    choices: Choices
    variants: dict[frozenset[str], Variant] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    local: threading.local = field(default_factory=threading.local)

    @property
    def source(self) -> str:
        return self.variant(self._results()).source

    @property
    def notes(self) -> tuple[Note, ...]:
        return self.variant(self._results()).notes

    def _results(self) -> frozenset[str]:
        return frozenset(param.buffer.name for param in self.function.tensors if param.result)

    def variant(self, aligned: frozenset[str]) -> Variant:
        """aligned: results that keep TMA's rules."""
        if aligned not in self.variants:
            with self.lock:
                if aligned not in self.variants:
                    choices = Choices(self.choices.persistent, aligned)
                    lowered, notes = lower(self.function, choices)
                    source, kernels = emit(lowered)
                    self.variants[aligned] = Variant(lowered, notes, source, kernels)
        return self.variants[aligned]

    def __call__(self, bound: Bound) -> None:
        calls = self.local.__dict__.setdefault("calls", {})
        aligned = frozenset(
            param.buffer.name
            for param in self.function.tensors
            if param.result and keeps_rules(bound.tensors[param.buffer.name])
        )
        if aligned not in calls:
            calls[aligned] = self._prepare(self.variant(aligned))
        for call in calls[aligned]:
            call(bound)

    def _prepare(self, variant: Variant) -> list["Call"]:
        with self.lock:
            if not variant.functions:
                architecture = driver.architecture()
                if architecture != ARCHITECTURE:
                    raise UnsupportedError(
                        self.function.span, self.function.name, f"this GPU is {architecture}", "run on a Hopper GPU (sm_90a)"
                    )
                names = tuple(kernel.name for kernel in variant.kernels)
                shared = tuple(kernel.shared for kernel in variant.kernels)
                variant.functions = driver.load(variant.code(), names, shared)
        return [
            Call(variant.lowered, kernel, function)
            for kernel, function in zip(variant.kernels, variant.functions, strict=True)
        ]


def keeps_rules(argument: Argument) -> bool:
    """TMA's, of base and strides."""
    return argument.pointer % 16 == 0 and all(
        stride * argument.dtype.bits // 8 % 16 == 0
        for stride, extent in zip(argument.strides[:-1], argument.shape, strict=False)
        if extent > 1
    )


class Call:
    """One kernel's argument block, filled anew for each launch; tensor maps and grids are kept by what they hang on."""

    def __init__(self, lowered: s.Function, kernel: Kernel, function: Any) -> None:
        self.kernel, self.function, self.lowered = kernel, function, lowered
        maps = {p.buffer.name: p for p in lowered.params if isinstance(p, s.TensorMap)}
        self.maps = [maps[name] for name in kernel.maps]
        self.pointers = (ctypes.c_uint64 * max(len(kernel.tensors), 1))()
        self.scalars = [
            (ctypes.c_float if var.dtype.is_float else ctypes.c_bool if var.dtype.bits == 8 else ctypes.c_int32)()
            for var in kernel.scalars
        ]
        self.blocks = (ctypes.c_void_p * max(1, len(self.maps) + len(kernel.tensors) + len(self.scalars)))()
        for i in range(len(kernel.tensors)):
            self.blocks[len(self.maps) + i] = ctypes.addressof(self.pointers) + 8 * i
        for i, scalar in enumerate(self.scalars):
            self.blocks[len(self.maps) + len(kernel.tensors) + i] = ctypes.addressof(scalar)
        self.encoded: dict[Any, tuple[Any, int]] = {}
        self.grids: dict[Any, int] = {}
        count = driver.attribute(driver.MULTIPROCESSORS, driver.device())
        self.extents = tuple(_with_multiprocessors(extent, count) for extent in kernel.extents)

    def __call__(self, bound: Bound) -> None:
        kernel = self.kernel
        for i, var in enumerate(kernel.scalars):
            value = bound.dims[var.name]
            if not var.dtype.is_float and abs(value) > LARGEST:
                raise ArgumentError(
                    self.lowered.span, self.lowered.name, f"{var.name} is {value}", "sizes and strides stay below 2**31"
                )
            self.scalars[i].value = value
        for i, name in enumerate(kernel.tensors):
            self.pointers[i] = bound.tensors[name].pointer
        blocks = self._grid(bound)
        if blocks == 0:
            return
        for i, tensor_map in enumerate(self.maps):
            self.blocks[i] = self._map(tensor_map, bound.tensors[tensor_map.tensor.name])
        driver.check(
            driver.driver().cuLaunchKernel(
                self.function, blocks, 1, 1, kernel.threads, 1, 1, kernel.shared, driver.stream(), self.blocks, None
            )
        )

    def _grid(self, bound: Bound) -> int:
        key = tuple(scalar.value for scalar in self.scalars)
        if key not in self.grids:
            names: dict[str, Number] = dict(bound.dims)
            for node in self.lowered.body:
                if isinstance(node, s.Let):
                    names[node.var.name] = evaluate(node.value, names)
            blocks = math.prod(int(evaluate(extent, names)) for extent in self.extents)
            if blocks > LARGEST:
                problem = f"the grid has {blocks} blocks"
                raise ArgumentError(self.lowered.span, self.lowered.name, problem, "a launch has fewer than 2**31")
            if len(self.grids) > MAPS_KEPT:
                self.grids.clear()
            self.grids[key] = blocks
        return self.grids[key]

    def _map(self, tensor_map: s.TensorMap, argument: Argument) -> int:
        """Address of the encoded map of this tensor."""
        key = (tensor_map.buffer.name, argument.pointer, argument.shape, argument.strides)
        found = self.encoded.get(key)
        if found is None:
            if len(self.encoded) > MAPS_KEPT:
                self.encoded.clear()
            memory = (ctypes.c_uint8 * (driver.MAP_BYTES + 64))()
            place = (ctypes.addressof(memory) + 63) & ~63
            width = argument.dtype.bits // 8
            dims = [max(argument.shape[dim], 1) for dim in tensor_map.dims]
            strides = [argument.strides[dim] * width for dim in tensor_map.dims[1:]]
            # A dimension of one element may have any stride; the map wants a multiple of 16 that is not 0.
            strides = [16 if extent == 1 and (step % 16 or step <= 0) else step for step, extent in zip(strides, dims[1:], strict=True)]
            driver.encode_map(
                place, argument.dtype.name, argument.pointer, dims, strides, tensor_map.box, tensor_map.swizzle
            )
            found = self.encoded[key] = (memory, place)
        return found[1]


def _with_multiprocessors(x: e.Expr, count: int) -> e.Expr:
    def change(node: Any) -> Any:
        if isinstance(node, e.Call) and node.name == "num_multiprocessors":
            return e.Const(i32, count)
        return node

    return transform(x, change)
