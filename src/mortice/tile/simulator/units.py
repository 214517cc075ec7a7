"""What the instructions do: addresses, swizzles, fragments. Memory is 16-bit or 8-bit words by their bits."""

import functools
from typing import Any

import numpy as np

from mortice.tile.diagnostics import CheckError, Span
from mortice.tile.dtypes import BY_NAME
from mortice.tile.interpreter.formats import decode
from mortice.tile.simulator.machine import LANES, Barrier, Block, Flight, Warp, active, lanes, scalar

Attributes = dict[str, Any]


def swizzled(address: np.ndarray, width: int) -> np.ndarray:
    """Bits from 4 on are crossed with bits from 7 on (PTX ISA, 5.5.7)."""
    bits = {0: 0, 32: 1, 64: 3, 128: 7}[width]
    out: np.ndarray = address ^ (((address >> 7) & bits) << 4)
    return out


# The copy engine


class TensorMap:
    """raw: words of the tensor in its own dimension order."""

    def __init__(
        self, raw: np.ndarray, dims: tuple[int, ...], box: tuple[int, ...], swizzle: int, name: str
    ) -> None:
        self.raw = raw.transpose(dims)  # fastest dimension first
        self.box, self.swizzle, self.name = box, swizzle, name
        self.size = raw.dtype.itemsize
        grid = np.indices(box[::-1]).reshape(len(box), -1)[
            ::-1
        ]  # coordinates, fastest first, in order of memory
        self.cells = grid
        self.bytes = int(np.prod(box)) * self.size

    def places(self, corner: list[int]) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        where = tuple(self.cells[i] + corner[i] for i in range(len(corner)))
        inside = np.ones(where[0].shape, bool)
        for index, extent in zip(where, self.raw.shape, strict=True):
            inside &= (index >= 0) & (index < extent)
        return where, inside

    def addresses(self, base: int) -> np.ndarray:
        linear = base + np.arange(self.bytes // self.size) * self.size
        return swizzled(linear, self.swizzle)

    def check(self, base: int, span: Span) -> None:
        need = 8 * self.swizzle if self.swizzle else 128
        if base % need:
            raise CheckError(
                span, self.name, f"a box begins at byte {base}, no multiple of {need}", "align the tile"
            )


def tma_load(
    block: Block, warp: Warp, at: int, tensor: TensorMap, barrier_at: int, corner: list[int], span: Span
) -> None:
    tensor.check(at, span)
    barrier: Barrier = block.barrier(barrier_at, span)
    helper = block.loader(barrier_at)
    block.clocks.begin(warp.number, helper)
    places = tensor.addresses(at)
    block.inside(places, tensor.size, span, tensor.name)
    block.clocks.write(helper, places, span, tensor.name, asynchronous=True)
    known = block.clocks.publish(helper)
    for byte in range(tensor.size):
        block.memory[places + byte] = 0xFF

    def land() -> None:
        where, inside = tensor.places(corner)
        words = np.zeros(places.shape, tensor.raw.dtype)
        words[inside] = tensor.raw[tuple(x[inside] for x in where)]
        block.memory.view(words.dtype)[places // tensor.size] = words
        barrier.bytes -= tensor.bytes
        barrier.arriving.append(known)
        block.settle(barrier)

    block.flights.append(Flight(land))


def tma_store(
    block: Block, warp: Warp, tensor: TensorMap, at: int, corner: list[int], span: Span, add: bool
) -> None:
    tensor.check(at, span)
    helper = block.helper(warp, "bulk")
    block.clocks.begin(warp.number, helper)
    places = tensor.addresses(at)
    block.inside(places, tensor.size, span, tensor.name)
    block.clocks.read(helper, places, span, tensor.name, asynchronous=True)

    def land() -> None:
        where, inside = tensor.places(corner)
        words = block.memory.view(tensor.raw.dtype)[places // tensor.size]
        target = tuple(x[inside] for x in where)
        if add:
            total = tensor.raw[target].view(np.float32) + words[inside].view(np.float32)
            tensor.raw[target] = total.view(tensor.raw.dtype)
        else:
            tensor.raw[target] = words[inside]

    block.join(warp, "bulk", land)


# The matrix unit


@functools.cache
def _offsets(
    first: int, rows: int, k: int, major: str, width: int, leading: int, stride: int, size: int
) -> np.ndarray:
    """[rows, k]: bytes from a descriptor's start, before the swizzle; rows from `first` on."""
    i, j = np.meshgrid(np.arange(first, first + rows), np.arange(k), indexing="ij")
    if major == "k":
        return i // 8 * stride + i % 8 * width + j * size
    per = width // size
    return i // per * leading + i % per * size + j // 8 * stride + j % 8 * width


def _matrix(
    block: Block,
    helper: int,
    start: int,
    first: int,
    rows: int,
    k: int,
    side: str,
    at: Attributes,
    span: Span,
) -> np.ndarray:
    dtype = BY_NAME[str(at[f"{side}_type"])]
    width = int(at[f"{side}_swizzle"])
    offsets = _offsets(
        first,
        rows,
        k,
        str(at[f"{side}_major"]),
        width,
        int(at[f"{side}_leading"]),
        int(at[f"{side}_stride"]),
        dtype.bytes,
    )
    places = swizzled(start + offsets, width)
    block.inside(places, dtype.bytes, span, "wgmma")
    block.clocks.read(helper, places.ravel(), span, "wgmma", asynchronous=True)
    words = block.memory.view(f"u{dtype.bytes}")[places // dtype.bytes]
    return decode(words, dtype)


ROW = np.arange(LANES) // 4
COLUMN = 2 * (np.arange(LANES) % 4)


def wgmma(
    block: Block, warp: Warp, d: np.ndarray, first: int, a: Any, b: int, keep: int, at: Attributes, span: Span
) -> None:
    """The warp's 16 rows of the product. a: byte address, or (registers, first)."""
    n, narrow = int(at["n"]), at["a_type"] in ("e4m3", "e5m2")
    k = 32 if narrow else 16
    own = id(d)
    if own in warp.dirty:
        raise CheckError(
            span, "wgmma", "its accumulator was written and not fenced", "wgmma_fence before the product"
        )
    if isinstance(a, tuple) and id(a[0]) in warp.dirty:
        raise CheckError(
            span, "wgmma", "its registers a were written and not fenced", "wgmma_fence before the product"
        )
    helper = block.helper(warp, "wgmma")
    block.clocks.begin(warp.number, helper)
    rows = 16 * (warp.number % 4)

    # Operands are taken now: they must be there when the product begins. That nobody overwrites them before it ends
    # is what the clocks check.
    right = _matrix(block, helper, b, 0, n, k, "b", at, span)
    if isinstance(a, tuple):
        left = np.zeros((16, k), np.float32)
        words, start = a
        dtype = BY_NAME[str(at["a_type"])]
        for r in range(4):
            halves = words[start + r].astype(np.uint32)
            for half in range(2):
                bits = ((halves >> (16 * half)) & 0xFFFF).astype(np.uint16)
                left[ROW + 8 * (r & 1), COLUMN + half + 8 * (r >> 1)] = decode(bits, dtype)
    else:
        left = _matrix(block, helper, a, rows, 16, k, "a", at, span)

    def land() -> None:
        product = left @ right.T
        for i in range(n // 2):
            r, c = ROW + 8 * ((i >> 1) & 1), 8 * (i >> 2) + COLUMN + (i & 1)
            old = d[first + i] if keep else np.float32(0)
            d[first + i] = old + product[r, c]

    block.join(warp, "wgmma", land, (own, id(a[0])) if isinstance(a, tuple) else (own,))


def mma(d: tuple[Any, int], a: tuple[Any, int], b: tuple[Any, int], at: Attributes) -> None:
    """m16n8 of a warp: row of a lane ROW and ROW + 8, in 4 bytes side by side `per` elements."""
    (sums, out), (left, right) = d, (_held(a, 4, str(at["a_type"])), _held(b, 2, str(at["b_type"])))
    rows = np.concatenate([left[[0, 2]], left[[1, 3]]], 1)  # [half of k, 2 x 8 rows of lanes, element]
    per = left.shape[2]
    exact = np.int64 if sums.dtype == np.int32 else np.float32
    x, y = np.zeros((16, 8 * per), exact), np.zeros((8, 8 * per), exact)
    for half in range(2):
        for i in range(per):
            column = 4 * per * half + per * (np.arange(LANES) % 4) + i
            x[ROW, column], x[ROW + 8, column] = rows[half, :LANES, i], rows[half, LANES:, i]
            y[ROW, column] = right[half, :, i]
    product = (x @ y.T).astype(sums.dtype)
    for i in range(4):
        sums[out + i] += product[ROW + 8 * (i >> 1), COLUMN + (i & 1)]


def _held(registers: tuple[Any, int], count: int, name: str) -> np.ndarray:
    """[register, lane, element] of words."""
    words, first = registers
    dtype = BY_NAME[name]
    raw = np.ascontiguousarray(words[first : first + count].astype(np.uint32)).view(f"u{dtype.bytes}")
    return decode(raw.reshape(count, LANES, 4 // dtype.bytes), dtype)


# Matrices and vectors


def ldmatrix(
    block: Block, warp: Warp, words: np.ndarray, first: int, addresses: Any, at: Attributes, span: Span
) -> None:
    count, places = int(at["count"]), lanes(addresses)
    used = places[: 8 * count]
    block.inside(used, 16, span, "ldmatrix")
    for m in range(count):
        block.count_conflicts(used[8 * m : 8 * m + 8], 16, span, "ldmatrix")
    block.clocks.read(warp.number, (used[:, None] + np.arange(0, 16, 4)).ravel(), span, "ldmatrix")
    memory = block.memory.view(np.uint16)
    for m in range(count):
        total = np.zeros(LANES, np.uint32)
        for half in range(2):
            row, column = (ROW, COLUMN + half) if not at["transpose"] else (COLUMN + half, ROW)
            total |= memory[(places[8 * m + row] + 2 * column) // 2].astype(np.uint32) << (16 * half)
        words[first + m] = total


def stmatrix(
    block: Block, warp: Warp, addresses: Any, words: np.ndarray, first: int, at: Attributes, span: Span
) -> None:
    count, places = int(at["count"]), lanes(addresses)
    used = places[: 8 * count]
    block.inside(used, 16, span, "stmatrix")
    for m in range(count):
        block.count_conflicts(places[8 * m : 8 * m + 8], 16, span, "stmatrix")
    spots = (used[:, None] + np.arange(0, 16, 4)).ravel()
    block.clocks.write(warp.number, spots, span, "stmatrix")
    memory = block.memory.view(np.uint16)
    for m in range(count):
        values = words[first + m].astype(np.uint32)
        for half in range(2):
            bits = ((values >> (16 * half)) & 0xFFFF).astype(np.uint16)
            row, column = (ROW, COLUMN + half) if not at["transpose"] else (COLUMN + half, ROW)
            memory[(places[8 * m + row] + 2 * column) // 2] = bits


def load_shared(
    block: Block,
    warp: Warp,
    words: np.ndarray,
    first: int,
    addresses: Any,
    at: Attributes,
    mask: Any,
    span: Span,
) -> None:
    bytes_, places = int(at["bytes"]), lanes(addresses)
    chosen = np.ones(LANES, bool) if mask is None else mask
    block.inside(places[chosen], bytes_, span, "load_shared")
    block.count_conflicts(places[chosen], bytes_, span, "load_shared")
    spots = (places[chosen][:, None] + np.arange(0, max(bytes_, 4), 4)).ravel()
    block.clocks.read(warp.number, spots, span, "load_shared")
    for w in range(max(1, bytes_ // 4)):
        size = min(bytes_, 4)
        found = block.memory.view(f"u{size}")[(places[chosen] + 4 * w) // size].astype(np.uint32)
        words[first + w][chosen] = found


def store_shared(
    block: Block,
    warp: Warp,
    addresses: Any,
    words: np.ndarray,
    first: int,
    at: Attributes,
    mask: Any,
    span: Span,
) -> None:
    bytes_, places = int(at["bytes"]), lanes(addresses)
    chosen = np.ones(LANES, bool) if mask is None else mask
    block.inside(places[chosen], bytes_, span, "store_shared")
    block.count_conflicts(places[chosen], bytes_, span, "store_shared")
    spots = (places[chosen][:, None] + np.arange(0, max(bytes_, 4), 4)).ravel()
    block.clocks.write(warp.number, spots, span, "store_shared")
    for w in range(max(1, bytes_ // 4)):
        size = min(bytes_, 4)
        block.memory.view(f"u{size}")[(places[chosen] + 4 * w) // size] = words[first + w][chosen].astype(
            f"u{size}"
        )


def set_registers(block: Block, warp: Warp, count: int) -> None:
    """All warps of a block share the card's registers; the sum over those that said a number must fit."""
    block.released[warp.number] = count
    if len(block.released) == block.count and sum(32 * n for n in block.released.values()) > 65536:
        raise CheckError(
            Span("", 0), "roles", "the roles' registers are more than a card has", "ask for fewer"
        )


def arrive(block: Block, warp: Warp, address: Any, mask: Any, span: Span, bytes: int = 0) -> None:
    known = block.clocks.publish(warp.number)
    at = scalar(address, mask, span, "barrier")
    barrier = block.barrier(at, span)
    barrier.bytes += bytes * active(mask)
    block.arrive(at, active(mask), known, span)
