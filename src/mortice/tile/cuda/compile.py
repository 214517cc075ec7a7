"""A function of tile IR as a function to call on a GPU."""

import ctypes
import math
import threading
from dataclasses import dataclass, field, replace
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
from mortice.tile.launch import LONG, Shortcut
from mortice.tile.passes.gpu.cards import SM_80
from mortice.tile.passes.gpu.context import Note
from mortice.tile.passes.gpu.lower import DEFAULT, Choices, lower

ARCHITECTURE = "sm_90a"
OLDEST = 80
LARGEST = 2**31 - 1
LAUNCHES_KEPT = 1024  # by pointers, sizes and stream; then all are forgotten
Ready = tuple[
    tuple[int, Any, int], ...
]  # of each kernel: addresses of its configuration and arguments, the function


def compile_function(function: s.Function, choices: Choices = DEFAULT) -> "Compiled":
    """For Hopper, unless `choices` name another card. Nothing is compiled yet where results need to be looked at; machine
    code is made on the first call."""
    return Compiled(function, choices)


def compile_for_sm_80(function: s.Function) -> "Compiled":
    """For any card from sm_80 on: made for the one that is there."""
    return Compiled(function, Choices(card=SM_80))


def compile_for_this_card(function: s.Function) -> "Compiled":
    """Hopper's own form on Hopper, and where there is no card; else what all cards know."""
    try:
        here = driver.architecture()
    except UnsupportedError:
        here = ARCHITECTURE
    return compile_function(function) if here == ARCHITECTURE else compile_for_sm_80(function)


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
    """Calls are safe from several threads: what a launch reads is never changed. ready: launches by what they were
    prepared for; kept: their memory."""

    function: s.Function
    choices: Choices
    variants: dict[frozenset[str], Variant] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ready: dict[Any, Ready] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)

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
                    choices = replace(self.choices, aligned=aligned)
                    lowered, notes = lower(self.function, choices)
                    source, kernels = emit(lowered)
                    self.variants[aligned] = Variant(lowered, notes, source, kernels)
        return self.variants[aligned]

    def __call__(self, bound: Bound) -> None:
        """A call with tensors and sizes seen before only launches."""
        stream = driver.stream()
        key = (*(x.pointer for x in bound.tensors.values()), *bound.dims.values(), stream)
        for config, function, arguments in self.ready.get(key) or self._make_ready(key, bound, stream):
            driver.start(config, function, arguments)

    def shortcut(self, bound: Bound) -> Shortcut:
        """For tensors like these at any address that is as well aligned."""
        ready, names = self.ready, [_name(param) for param in self.function.params]
        start = driver.driver().cuLaunchKernelEx
        token = object()  # in the key: these shapes and types

        def entry(*values: Any) -> int:
            launches = ready.get(values)
            if launches is None:
                launches = self._like(bound, names, values)
                if launches is None:
                    return 1
            for config, function, arguments in launches:
                if start(config, function, arguments, None):
                    driver.start(config, function, arguments)
            return 0

        return Shortcut(entry, token, driver.stream_of_torch() or driver.stream, lambda code: LONG)

    def _like(self, bound: Bound, names: list[str], values: tuple[Any, ...]) -> Ready | None:
        """The launches at other addresses; None where these keep fewer of TMA's rules, so that other code is due."""
        tensors, dims = dict(bound.tensors), dict(bound.dims)
        for name, value in zip(names, values, strict=False):
            if name not in tensors:
                dims[name] = value
                continue
            moved = replace(tensors[name], pointer=value)
            if keeps_rules(moved) != keeps_rules(tensors[name]):
                return None
            tensors[name] = moved
        return self._make_ready(values, Bound(tensors, dims), values[-1])

    def _make_ready(self, key: Any, bound: Bound, stream: int) -> Ready:
        aligned = frozenset(
            param.buffer.name
            for param in self.function.tensors
            if param.result and keeps_rules(bound.tensors[param.buffer.name])
        )
        launches = [x for x in self._prepare(self.variant(aligned), bound) if x.blocks]
        configs = [x.config(stream) for x in launches]
        ready = tuple(
            (ctypes.addressof(config), x.function, ctypes.addressof(x.arguments))
            for x, config in zip(launches, configs, strict=True)
        )
        with self.lock:
            if len(self.ready) >= LAUNCHES_KEPT:
                # Another thread may be launching one of them: their memory lives one generation longer.
                self.ready.clear()
                self.kept = self.kept[-LAUNCHES_KEPT:]
            self.ready[key] = ready
            self.kept.append((launches, configs))
        return ready

    def _prepare(self, variant: Variant, bound: Bound) -> list["Launch"]:
        with self.lock:
            if not variant.functions:
                architecture = driver.architecture()
                hopper = self.choices.card.hopper
                if (hopper and architecture != ARCHITECTURE) or _number(architecture) < OLDEST:
                    problem = f"this GPU is {architecture}"
                    remedy = "run on a Hopper GPU (sm_90a)" if hopper else "run on a GPU from sm_80 on"
                    raise UnsupportedError(self.function.span, self.function.name, problem, remedy)
                names = tuple(kernel.name for kernel in variant.kernels)
                shared = tuple(kernel.shared for kernel in variant.kernels)
                variant.functions = driver.load(variant.code(architecture), names, shared)
        return [
            Launch(variant.lowered, kernel, function, bound)
            for kernel, function in zip(variant.kernels, variant.functions, strict=True)
        ]


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_").rstrip("a"))


def _name(param: s.Param) -> str:
    return param.var.name if isinstance(param, s.Scalar) else param.buffer.name


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
        self.function, self.kernel = function, kernel

    def config(self, stream: int) -> driver.LaunchConfig:
        kernel = self.kernel
        return driver.launch_config(self.blocks, kernel.threads, kernel.shared, stream, kernel.dependent)


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
    if blocks % kernel.cluster:
        problem = f"the grid has {blocks} blocks, a cluster {kernel.cluster}"
        raise ArgumentError(lowered.span, lowered.name, problem, "make the grid whole clusters")
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
