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
from mortice.tile.passes.gpu.lower import DEFAULT, Choices, lower

ARCHITECTURE = "sm_90a"
LARGEST = 2**31 - 1
LAUNCHES_KEPT = 256  # of a thread, by pointers and sizes


def compile_function(function: s.Function, choices: Choices = DEFAULT) -> "Compiled":
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
        """A call with tensors and sizes seen before only launches."""
        ready = self.local.__dict__.setdefault("ready", {})
        key = (*(x.pointer for x in bound.tensors.values()), *bound.dims.values())
        launches = ready.get(key)
        if launches is None:
            aligned = frozenset(
                param.buffer.name
                for param in self.function.tensors
                if param.result and keeps_rules(bound.tensors[param.buffer.name])
            )
            if len(ready) > LAUNCHES_KEPT:
                ready.clear()
            launches = ready[key] = [
                call for call in self._prepare(self.variant(aligned), bound) if call.blocks
            ]
        stream = driver.stream() if launches else 0
        for launch in launches:
            launch(stream)

    def _prepare(self, variant: Variant, bound: Bound) -> list["Launch"]:
        with self.lock:
            if not variant.functions:
                architecture = driver.architecture()
                if architecture != ARCHITECTURE:
                    problem = f"this GPU is {architecture}"
                    raise UnsupportedError(
                        self.function.span, self.function.name, problem, "run on a Hopper GPU (sm_90a)"
                    )
                names = tuple(kernel.name for kernel in variant.kernels)
                shared = tuple(kernel.shared for kernel in variant.kernels)
                variant.functions = driver.load(variant.code(), names, shared)
        return [
            Launch(variant.lowered, kernel, function, bound)
            for kernel, function in zip(variant.kernels, variant.functions, strict=True)
        ]


def keeps_rules(argument: Argument) -> bool:
    """TMA's, of base and strides."""
    return argument.pointer % 16 == 0 and all(
        stride * argument.dtype.bits // 8 % 16 == 0
        for stride, extent in zip(argument.strides[:-1], argument.shape, strict=False)
        if extent > 1
    )


class Launch:
    """One kernel with the argument block of one set of tensors and sizes."""

    def __init__(self, lowered: s.Function, kernel: Kernel, function: Any, bound: Bound) -> None:
        maps = {p.buffer.name: p for p in lowered.params if isinstance(p, s.TensorMap)}
        for var in kernel.scalars:
            if not var.dtype.is_float and abs(bound.dims[var.name]) > LARGEST:
                problem = f"{var.name} is {bound.dims[var.name]}"
                raise ArgumentError(lowered.span, lowered.name, problem, "sizes and strides stay below 2**31")
        self.blocks = _blocks(lowered, kernel, bound)
        self.memory: list[Any] = []  # what the block points to
        places = []
        if self.blocks:
            for name in kernel.maps:
                memory, place = _encoded(maps[name], bound.tensors[maps[name].tensor.name])
                self.memory.append(memory)
                places.append(place)
        values: list[Any] = [ctypes.c_uint64(bound.tensors[name].pointer) for name in kernel.tensors]
        for var in kernel.scalars:
            kind = (
                ctypes.c_float
                if var.dtype.is_float
                else ctypes.c_bool
                if var.dtype.bits == 8
                else ctypes.c_int32
            )
            value: Any = bound.dims[var.name]
            values.append(kind(value))
        self.memory += values
        places += [ctypes.addressof(value) for value in values]
        self.arguments = (ctypes.c_void_p * max(1, len(places)))(*places)
        self.function, self.threads, self.shared = function, kernel.threads, kernel.shared
        self.launch = driver.driver().cuLaunchKernel

    def __call__(self, stream: int) -> None:
        status = self.launch(
            self.function, self.blocks, 1, 1, self.threads, 1, 1, self.shared, stream, self.arguments, None
        )
        if status:
            driver.check(status)


def _blocks(lowered: s.Function, kernel: Kernel, bound: Bound) -> int:
    names: dict[str, Number] = dict(bound.dims)
    for node in lowered.body:
        if isinstance(node, s.Let):
            names[node.var.name] = evaluate(node.value, names)
    count = driver.attribute(driver.MULTIPROCESSORS, driver.device())
    blocks = math.prod(int(evaluate(_with_multiprocessors(x, count), names)) for x in kernel.extents)
    if blocks > LARGEST:
        problem = f"the grid has {blocks} blocks"
        raise ArgumentError(lowered.span, lowered.name, problem, "a launch has fewer than 2**31")
    return blocks


def _encoded(tensor_map: s.TensorMap, argument: Argument) -> tuple[Any, int]:
    """The map's memory and the address of its 128 bytes in it."""
    memory = (ctypes.c_uint8 * (driver.MAP_BYTES + 64))()
    place = (ctypes.addressof(memory) + 63) & ~63
    width = argument.dtype.bits // 8
    dims = [max(argument.shape[dim], 1) for dim in tensor_map.dims]
    # A dimension of one element may have any stride; the map wants a multiple of 16 that is not 0.
    strides = [
        16
        if extent == 1 and (argument.strides[dim] * width % 16 or argument.strides[dim] <= 0)
        else argument.strides[dim] * width
        for dim, extent in zip(tensor_map.dims[1:], dims[1:], strict=True)
    ]
    kind, pointer = argument.dtype.name, argument.pointer
    driver.encode_map(place, kind, pointer, dims, strides, tensor_map.box, tensor_map.swizzle)
    return memory, place


def _with_multiprocessors(x: e.Expr, count: int) -> e.Expr:
    def change(node: Any) -> Any:
        if isinstance(node, e.Call) and node.name == "num_multiprocessors":
            return e.Const(i32, count)
        return node

    changed: e.Expr = transform(x, change)
    return changed
