"""Runs a lowered function: every block of every launch, one after the other, each with its warps in random order."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mortice.tile.diagnostics import CheckError, Span, UnsupportedError
from mortice.tile.dtypes import BY_NAME, i32
from mortice.tile.host import Bound
from mortice.tile.interpreter.formats import NATIVE, arithmetic, decode, encode, rounded
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.evaluate import Number, evaluate
from mortice.tile.ir.walk import transform, walk
from mortice.tile.simulator import units
from mortice.tile.simulator.code import Code
from mortice.tile.simulator.machine import LANES, Barrier, Block, lanes, scalar

MULTIPROCESSORS = 3  # few, so that blocks walk over several tiles also in small problems
Mask = Any


@dataclass
class Report:
    """conflicts: for an instruction and its line the most lanes that wanted one bank at once, where above one."""

    blocks: int = 0
    conflicts: dict[tuple[str, int], int] = field(default_factory=dict)


def simulate(
    function: s.Function, bound: Bound, seed: int = 0, multiprocessors: int = MULTIPROCESSORS
) -> Report:
    """function: of the thread level. Raises CheckError for a deadlock, a race, a missing fence, a wrong count, an access
    out of bounds; the message says where."""
    report = Report()
    function = transform_counts(function, multiprocessors)
    names: dict[str, Number] = dict(bound.dims)
    for node in function.body:
        if isinstance(node, s.Let):
            names[node.var.name] = evaluate(node.value, names)
        if isinstance(node, s.Launch):
            _launch(function, node, bound, names, seed, report)
    return report


def _launch(
    function: s.Function, launch: s.Launch, bound: Bound, names: dict[str, Number], seed: int, report: Report
) -> None:
    if launch.cluster > 1:
        raise UnsupportedError(
            launch.span, "grid", "the simulator runs blocks one by one, without clusters", "run it on a GPU"
        )
    code = Code(function, launch)
    text = code.make()
    total = 1
    for extent in launch.extents:
        total *= int(evaluate(extent, names))
    runtime = Runtime(function, bound, code.spans, total)
    scope: dict[str, Any] = {
        "np": np, "LANE": np.arange(LANES), "Barrier": Barrier, "scalar": scalar,
        "NATIVE": {d.name: t for d, t in NATIVE.items()},
        **{name: getattr(units, name) for name in (
            "tma_load", "tma_store", "wgmma", "mma", "ldmatrix", "stmatrix",
            "load_shared", "store_shared", "set_registers", "arrive")},
        **{f"v_{name}": _number(value) for name, value in names.items()},
    }  # fmt: skip
    exec(compile(text, f"<simulated {function.name}>", "exec"), scope)
    shared = max(
        (
            x.at + x.buffer.extents[0] * (8 if x.buffer.scope == "barrier" else x.buffer.dtype.bytes)
            for x in walk(launch.body)
            if isinstance(x, s.Alloc) and x.at is not None
        ),
        default=0,
    )
    barriers = sum(
        x.buffer.extents[0]
        for x in walk(launch.body)
        if isinstance(x, s.Alloc) and x.buffer.scope == "barrier"
    )
    for number in range(total):
        block = Block((launch.threads or 32) // 32, barriers, shared, seed * 7919 + number)
        coroutines = []
        for role, (first, warps, _) in enumerate(code.roles):
            for warp in range(first, first + warps):
                coroutines.append(scope[f"role_{role}"](runtime, block, block.warps[warp], number))
        block.run(coroutines)
        report.blocks += 1
        for key, worst in block.conflicts.items():
            if worst > 1:
                report.conflicts[key] = max(report.conflicts.get(key, 1), worst)


def transform_counts(function: s.Function, multiprocessors: int) -> s.Function:
    def change(node: Any) -> Any:
        if isinstance(node, e.Call) and node.name == "num_multiprocessors":
            return e.Const(i32, multiprocessors)
        return node

    return replace(function, body=tuple(transform(x, change) for x in function.body))


def _number(value: Number) -> Any:
    return np.float32(value) if isinstance(value, float) else value


class Runtime:
    """What the text calls: tensors, masks, values in vectors."""

    def __init__(self, function: s.Function, bound: Bound, spans: list[Span], blocks: int) -> None:
        self.spans, self.blocks = spans, blocks
        self.buffers = {p.buffer.name: p.buffer for p in function.tensors}
        self.raw = {name: bound.tensors[name].raw() for name in self.buffers}
        self.maps = {
            p.buffer.name: units.TensorMap(self.raw[p.tensor.name], p.dims, p.box, p.swizzle, p.tensor.name)
            for p in function.params
            if isinstance(p, s.TensorMap)
        }

    # Masks

    @staticmethod
    def branch(mask: Mask, condition: Any, sense: bool) -> Mask:
        """The lanes that take this way; False where none does."""
        if not isinstance(condition, np.ndarray) or condition.ndim == 0:
            return mask if bool(condition) == sense else False
        chosen = condition.astype(bool) if sense else ~condition.astype(bool)
        if mask is not None:
            chosen = chosen & mask
            if (chosen == mask).all():
                return mask
        elif chosen.all():
            return None
        return chosen if chosen.any() else False

    @staticmethod
    def assign(mask: Mask, outer: Mask, new: Any, old: Any) -> Any:
        return new if mask is outer else np.where(mask, new, old)

    @staticmethod
    def goes_on(value: Any, stop: Any, step: Any) -> Any:
        return value < stop if np.all(np.asarray(step) > 0) else value > stop

    @staticmethod
    def alone(mask: Mask, span: Span, name: str) -> None:
        if mask is None or mask.sum() != 1:
            raise CheckError(span, name, "more than one lane starts this copy", "let one elected lane do it")

    @staticmethod
    def put(array: np.ndarray, index: int, value: Any, mask: Mask) -> None:
        if mask is None:
            array[index] = value
        else:
            array[index] = np.where(mask, value, array[index])

    @staticmethod
    def see(block: Block, warp: Any, array: np.ndarray, index: int, span: Span, name: str) -> np.ndarray:
        block.touch(warp, array, span, name, False)
        value: np.ndarray = array[index]
        return value

    # Values

    @staticmethod
    def select(condition: Any, then: Callable[[Any], Any], otherwise: Callable[[Any], Any]) -> Any:
        if not isinstance(condition, np.ndarray) or condition.ndim == 0:
            return then(None) if condition else otherwise(None)
        with np.errstate(all="ignore"):
            return np.where(condition, then(None), otherwise(None))

    @staticmethod
    def divide(left: Any, right: Any) -> Any:
        with np.errstate(all="ignore"):
            return (
                np.float32(left) / np.float32(right) if np.ndim(left) == np.ndim(right) == 0 else left / right
            )

    @staticmethod
    def math(name: str, value: Any) -> Any:
        x = np.asarray(value)
        with np.errstate(all="ignore"):
            if name == "rsqrt":
                return (1 / np.sqrt(x)).astype(x.dtype)
            if name == "sigmoid":
                return (1 / (1 + np.exp(-x))).astype(x.dtype)
            if name == "erf":
                import math

                return np.vectorize(math.erf, otypes=[x.dtype])(x)
            return getattr(np, name)(x).astype(x.dtype)

    @staticmethod
    def cast(value: Any, name: str) -> Any:
        dtype = BY_NAME[name]
        array = np.asarray(value)
        if dtype.bits < 32:
            return rounded(array, dtype)
        return array.astype(NATIVE[dtype])

    @staticmethod
    def bitcast(value: Any, source: str, to: str) -> Any:
        return np.asarray(value).astype(NATIVE[BY_NAME[source]]).view(NATIVE[BY_NAME[to]])

    @staticmethod
    def shuffle_xor(value: Any, distance: Any) -> Any:
        return np.broadcast_to(value, (LANES,))[np.arange(LANES) ^ distance]

    @staticmethod
    def shuffle(value: Any, lane: Any) -> Any:
        return np.broadcast_to(value, (LANES,))[np.broadcast_to(lane, (LANES,)) % LANES]

    @staticmethod
    def shuffle_up(value: Any, distance: Any) -> Any:
        place = np.arange(LANES) - distance
        return np.broadcast_to(value, (LANES,))[np.where(place >= 0, place, np.arange(LANES))]

    @staticmethod
    def exp2_fast(value: Any) -> Any:
        return Runtime.math("exp2", value)

    @staticmethod
    def zero() -> Any:
        return np.float32(0)

    @staticmethod
    def fma(x: Any, y: Any, z: Any) -> Any:
        return (np.float64(x) * np.float64(y) + np.float64(z)).astype(np.float32)

    @staticmethod
    def _pack(low: Any, high: Any, name: str) -> np.ndarray:
        dtype = BY_NAME[name]
        words = [
            encode(np.broadcast_to(np.float32(x), (LANES,)), dtype).astype(np.uint32) for x in (low, high)
        ]
        packed: np.ndarray = words[0] | words[1] << 16
        return packed

    def pack_bf16x2(self, low: Any, high: Any) -> np.ndarray:
        return self._pack(low, high, "bf16")

    def pack_f16x2(self, low: Any, high: Any) -> np.ndarray:
        return self._pack(low, high, "f16")

    @staticmethod
    def _half(word: Any, shift: int, name: str) -> np.ndarray:
        return decode((np.asarray(word, np.uint32) >> shift & 0xFFFF).astype(np.uint16), BY_NAME[name])

    def low_bf16(self, word: Any) -> np.ndarray:
        return self._half(word, 0, "bf16")

    def high_bf16(self, word: Any) -> np.ndarray:
        return self._half(word, 16, "bf16")

    def low_f16(self, word: Any) -> np.ndarray:
        return self._half(word, 0, "f16")

    def high_f16(self, word: Any) -> np.ndarray:
        return self._half(word, 16, "f16")

    @staticmethod
    def wide_e4m3(word: Any) -> np.ndarray:
        return decode(np.asarray(word, np.uint32).astype(np.uint8), BY_NAME["e4m3"])

    @staticmethod
    def wide_e5m2(word: Any) -> np.ndarray:
        return decode(np.asarray(word, np.uint32).astype(np.uint8), BY_NAME["e5m2"])

    @staticmethod
    def _narrow(value: Any, name: str) -> np.ndarray:
        values = np.broadcast_to(np.asarray(value, np.float32), (LANES,)).copy()
        return encode(values, BY_NAME[name]).astype(np.uint32)

    def narrow_e4m3(self, value: Any) -> np.ndarray:
        return self._narrow(value, "e4m3")

    def narrow_e5m2(self, value: Any) -> np.ndarray:
        return self._narrow(value, "e5m2")

    # Tensors

    def _places(
        self, name: str, indices: tuple[Any, ...], guards: Any, mask: Mask, span: Span
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        shape = self.raw[name].shape
        where = tuple(np.broadcast_to(np.asarray(i), (LANES,)) for i in indices)
        taken = np.ones(LANES, bool) if mask is None else mask.copy()
        for axis, (index, extent) in enumerate(zip(where, shape, strict=True)):
            inside = (index >= 0) & (index < extent)
            if guards is None or guards[axis]:
                taken &= inside
            elif not inside[taken].all():
                bad = int(index[taken & ~inside][0])
                problem = f"index {bad} of dimension {axis} is outside {extent}, and nothing guards it"
                raise CheckError(span, name, problem, "guard it")
        return tuple(np.where(taken, i, 0) for i in where), taken

    def load(self, name: str, indices: tuple[Any, ...], guards: Any, mask: Mask, span: Span) -> Any:
        single = all(np.ndim(i) == 0 for i in indices)
        where, taken = self._places(name, indices, guards, mask, span)
        dtype = self.buffers[name].dtype
        out: np.ndarray = np.zeros(LANES, arithmetic(dtype))
        out[taken] = decode(self.raw[name][tuple(i[taken] for i in where)], dtype)
        if single:
            first = int(np.argmax(taken)) if taken.any() else 0
            value = out[first]
            return int(value) if not dtype.is_float else value
        return out

    def store(
        self, name: str, indices: tuple[Any, ...], value: Any, guards: Any, mask: Mask, span: Span
    ) -> None:
        where, taken = self._places(name, indices, guards, mask, span)
        words = encode(np.broadcast_to(np.asarray(value), (LANES,)).copy(), self.buffers[name].dtype)
        self.raw[name][tuple(i[taken] for i in where)] = words[taken]

    def atomic(
        self, op: str, name: str, indices: tuple[Any, ...], value: Any, mask: Mask, span: Span
    ) -> None:
        where, taken = self._places(name, indices, None, mask, span)
        dtype = self.buffers[name].dtype
        values = np.broadcast_to(np.asarray(value), (LANES,))
        for lane in np.flatnonzero(taken):
            place = tuple(i[lane] for i in where)
            old = decode(self.raw[name][place][None], dtype)[0]
            new = {"add": old + values[lane], "max": max(old, values[lane]), "min": min(old, values[lane])}[
                op
            ]
            self.raw[name][place] = encode(np.asarray([new]), dtype)[0]

    def load_global(
        self,
        name: str,
        indices: tuple[Any, ...],
        words: np.ndarray,
        first: int,
        bytes: int,
        mask: Mask,
        span: Span,
    ) -> None:
        size = self.buffers[name].dtype.bytes
        for w in range(bytes // 4):
            total = np.zeros(LANES, np.uint32)
            for part in range(4 // size):
                step = w * (4 // size) + part
                where, taken = self._places(
                    name, (*indices[:-1], np.asarray(indices[-1]) + step), (False,) * len(indices), mask, span
                )
                total[taken] |= self.raw[name][tuple(i[taken] for i in where)].astype(np.uint32) << (
                    8 * size * part
                )
            words[first + w] = np.where(taken, total, words[first + w])

    def cp_async(
        self, block: Block, warp: Any, addresses: Any, name: str, indices: tuple[Any, ...], real: Any, bytes: int,
        mask: Mask, span: Span,
    ) -> None:  # fmt: skip
        """Lanes copy `bytes` to shared memory, of which the first `real` are read and the others are 0."""
        places, size = lanes(addresses), self.buffers[name].dtype.bytes
        chosen = np.ones(LANES, bool) if mask is None else mask
        count = np.where(chosen, lanes(real), 0)
        if (count < 0).any() or (count > bytes).any() or (count % size).any():
            raise CheckError(
                span, name, "cp.async reads part of an element or more than it writes", "mend its size"
            )
        block.inside(places[chosen], bytes, span, "cp_async")
        found = np.zeros((LANES, bytes // size), f"u{size}")
        for step in range(bytes // size):
            reads = count > step * size
            if reads.any():
                at = (*indices[:-1], np.asarray(indices[-1]) + step)
                where, taken = self._places(name, at, (False,) * len(indices), reads, span)
                found[taken, step] = self.raw[name][tuple(i[taken] for i in where)].view(f"u{size}")
        helper = block.helper(warp, "cp_async")
        block.clocks.begin(warp.number, helper)
        spots = (places[chosen][:, None] + np.arange(bytes)).ravel()
        block.clocks.write(helper, spots, span, "cp_async")
        block.memory[spots] = 0xFF
        landing = found[chosen].reshape(-1).view(np.uint8)

        def land() -> None:
            block.memory[spots] = landing

        block.join(warp, "cp_async", land)

    def store_global(
        self,
        name: str,
        indices: tuple[Any, ...],
        words: np.ndarray,
        first: int,
        bytes: int,
        mask: Mask,
        span: Span,
    ) -> None:
        size = self.buffers[name].dtype.bytes
        for step in range(bytes // size):
            where, taken = self._places(
                name, (*indices[:-1], np.asarray(indices[-1]) + step), (False,) * len(indices), mask, span
            )
            word = words[first + step * size // 4] >> (8 * (step * size % 4))
            self.raw[name][tuple(i[taken] for i in where)] = word[taken].astype(self.raw[name].dtype)
