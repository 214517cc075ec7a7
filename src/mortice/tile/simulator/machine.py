"""One block: its shared memory, barriers, warps, and work in flight."""

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mortice.tile.diagnostics import CheckError, Span
from mortice.tile.simulator.clocks import KINDS, Clocks, Known

LANES = 32
SHARED_BYTES = 232448
REGISTERS = 65536
POISON = 0xFF


@dataclass
class Barrier:
    """phase counts completed phases; bytes: announced and not yet there."""

    count: int
    pending: int
    bytes: int = 0
    phase: int = 0
    arriving: list[Known] = field(default_factory=list)
    last: list[Known] = field(default_factory=list)


@dataclass
class Named:
    """A named barrier: threads that have come so far, and what they know."""

    threads: int = 0
    round: int = 0
    arriving: list[Known] = field(default_factory=list)
    last: list[Known] = field(default_factory=list)


@dataclass
class Flight:
    """A copy on its way: what it does when it lands."""

    land: Callable[[], None]


@dataclass
class Group:
    """Asynchronous work of a warp that is awaited together."""

    work: list[Callable[[], None]] = field(default_factory=list)
    arrays: list[int] = field(default_factory=list)  # registers it uses
    known: Known | None = None


@dataclass
class Warp:
    """number: in the block; base: of its role's first warp."""

    number: int
    base: int = 0
    registers: int = 0
    open: dict[str, Group] = field(default_factory=dict)
    groups: dict[str, list[Group]] = field(default_factory=dict)
    busy: dict[int, int] = field(
        default_factory=dict
    )  # id of a register array -> groups in flight that use it
    dirty: set[int] = field(default_factory=set)  # register arrays written since the last wgmma_fence
    waiting: str = ""

    @property
    def thread(self) -> np.ndarray:
        return np.arange(LANES) + LANES * (self.number - self.base)


class Block:
    """Runs the coroutines of its warps until all are done."""

    def __init__(self, warps: int, barriers: int, shared: int, seed: int) -> None:
        if shared > SHARED_BYTES:
            raise CheckError(
                Span("", 0), "shared", f"{shared} bytes are placed, a block has {SHARED_BYTES}", "place less"
            )
        self.memory = np.full(max(-(-shared // 16) * 16, 16), POISON, np.uint8)
        self.clocks = Clocks(warps, barriers, self.memory.size)
        self.barriers: dict[int, Barrier] = {}
        self.loaders: dict[int, int] = {}  # barrier -> the actor of loads that complete on it
        self.named: dict[int, Named] = {}
        self.flights: list[Flight] = []
        self.random = random.Random(seed)
        self.count = warps
        self.warps = [Warp(i) for i in range(warps)]
        self.conflicts: dict[tuple[str, int], int] = {}
        self.released: dict[int, int] = {}

    def run(self, coroutines: list[Generator[Callable[[], bool] | None, None, None]]) -> None:
        """Raises CheckError where nothing can go on and something is not done."""
        alive: dict[int, tuple[Any, Callable[[], bool] | None]] = {
            i: (c, None) for i, c in enumerate(coroutines)
        }
        while alive:
            ready = [i for i, (_, condition) in alive.items() if condition is None or condition()]
            choices = len(ready) + len(self.flights)
            if not choices:
                held = "; ".join(f"warp {i} {self.warps[i].waiting}" for i in alive)
                raise CheckError(
                    Span("", 0),
                    "block",
                    f"deadlock: {held}",
                    "look for an arrive, expect or copy that is missing",
                )
            pick = self.random.randrange(choices)
            if pick >= len(ready):
                self.flights.pop(pick - len(ready)).land()
                continue
            number = ready[pick]
            try:
                alive[number] = (alive[number][0], next(alive[number][0]))
            except StopIteration:
                del alive[number]
                self._done(self.warps[number])
        while self.flights:
            self.flights.pop().land()
        for warp in self.warps:
            for kind in list(warp.groups):
                self.complete(warp, kind, 0)

    def _done(self, warp: Warp) -> None:
        if any(group.work for group in (*warp.groups.get("wgmma", []), warp.open.get("wgmma", Group()))):
            raise CheckError(
                Span("", 0),
                "wgmma",
                f"warp {warp.number} ends with products in flight",
                "wgmma_wait at the end",
            )
        bulk = warp.groups.get("bulk", [])
        if any(group.work for group in bulk):
            raise CheckError(
                Span("", 0),
                "tma_store",
                f"warp {warp.number} ends while stores read its shared memory",
                "bulk_wait at the end",
            )
        if warp.open.get("bulk", Group()).work:
            raise CheckError(
                Span("", 0), "tma_store", f"warp {warp.number} never commits a store", "bulk_commit after it"
            )

    # Barriers

    def barrier(self, address: int, span: Span) -> Barrier:
        if address not in self.barriers:
            raise CheckError(
                span, "barrier", f"no barrier at byte {address} was initialised", "barrier_init by one thread"
            )
        return self.barriers[address]

    def arrive(self, address: int, arrivals: int, known: Known, span: Span) -> None:
        barrier = self.barrier(address, span)
        if arrivals > barrier.pending:
            problem = f"{barrier.count - barrier.pending + arrivals} arrivals in a phase of {barrier.count}"
            raise CheckError(span, "barrier", problem, "arrive as often as its count says")
        barrier.pending -= arrivals
        barrier.arriving.append(known)
        self.settle(barrier)

    def settle(self, barrier: Barrier) -> None:
        if barrier.pending == 0 and barrier.bytes == 0:
            barrier.phase += 1
            barrier.pending = barrier.count
            barrier.last, barrier.arriving = barrier.arriving, []

    def wait(
        self, warp: Warp, address: int, parity: int, span: Span
    ) -> Generator[Callable[[], bool], None, None]:
        barrier = self.barrier(address, span)
        due = f"{barrier.pending} arrivals and {barrier.bytes} bytes due"
        warp.waiting = f"waits at {span} for parity {parity} of the barrier at byte {address}, {due}"
        if barrier.phase % 2 == parity:
            yield lambda: barrier.phase % 2 != parity
        for known in barrier.last:
            self.clocks.learn(warp.number, known)

    def sync(
        self, warp: Warp, number: int, threads: int, span: Span, wait: bool
    ) -> Generator[Callable[[], bool], None, None]:
        named = self.named.setdefault(number, Named())
        named.arriving.append(self.clocks.publish(warp.number))
        named.threads += LANES
        here = named.round
        if named.threads > threads:
            raise CheckError(
                span,
                "sync",
                f"{named.threads} threads come to barrier {number} of {threads}",
                "let all say one count",
            )
        if named.threads == threads:
            named.threads, named.round = 0, named.round + 1
            named.last, named.arriving = named.arriving, []
        if wait:
            warp.waiting = (
                f"waits at {span} at named barrier {number}, {named.threads} of {threads} threads there"
            )
            if named.round == here:
                yield lambda: named.round != here
            for known in named.last:
                self.clocks.learn(warp.number, known)

    # Asynchronous groups

    def helper(self, warp: Warp, kind: str) -> int:
        """The actor of a warp's products, stores or copies."""
        return self.count * {"wgmma": 1, "bulk": 2, "cp_async": 3}[kind] + warp.number

    def loader(self, barrier: int) -> int:
        return self.loaders.setdefault(barrier, len(KINDS) * self.count + len(self.loaders))

    def join(self, warp: Warp, kind: str, work: Callable[[], None], arrays: tuple[int, ...] = ()) -> None:
        group = warp.open.setdefault(kind, Group())
        group.work.append(work)
        for array in arrays:
            if array not in group.arrays:
                group.arrays.append(array)
                warp.busy[array] = warp.busy.get(array, 0) + 1

    def commit(self, warp: Warp, kind: str) -> None:
        group = warp.open.pop(kind, Group())
        group.known = self.clocks.publish(self.helper(warp, kind))
        warp.groups.setdefault(kind, []).append(group)

    def complete(self, warp: Warp, kind: str, pending: int) -> None:
        groups = warp.groups.setdefault(kind, [])
        while len(groups) > pending:
            group = groups.pop(0)
            for work in group.work:
                work()
            for array in group.arrays:
                warp.busy[array] -= 1
            if group.known is not None:
                self.clocks.learn(warp.number, group.known)

    def touch(self, warp: Warp, array: np.ndarray, span: Span, name: str, writes: bool) -> None:
        """Ordinary use of registers that products use."""
        if warp.busy.get(id(array)):
            raise CheckError(
                span, name, f"{name} is touched while a product that uses it is in flight", "wgmma_wait first"
            )
        if writes:
            warp.dirty.add(id(array))

    # Shared memory

    def inside(self, addresses: np.ndarray, bytes: int, span: Span, name: str) -> None:
        if addresses.size and (addresses.min() < 0 or addresses.max() + bytes > self.memory.size):
            raise CheckError(
                span,
                name,
                f"byte {int(addresses.max())} is outside the block's shared memory",
                "mend the address",
            )
        if (addresses % min(bytes, 16)).any():
            raise CheckError(span, name, f"an address is no multiple of {bytes}", "align it")

    def count_conflicts(self, addresses: np.ndarray, bytes: int, span: Span, name: str) -> None:
        """Rows of 8 lanes for 16 bytes, half warps for 8, a warp for less; how often one bank is needed."""
        lanes = max(1, min(LANES, 128 // bytes))
        worst = 1
        for first in range(0, addresses.size, lanes):
            words = np.unique(addresses[first : first + lanes] // 4)
            spread = np.bincount((words % 32).astype(int), minlength=32)
            worst = max(worst, int(spread.max()))
        key = (name, span.line)
        self.conflicts[key] = max(self.conflicts.get(key, 1), worst)


def scalar(value: Any, mask: np.ndarray | None, span: Span, name: str) -> int:
    """A value that must be the same in all lanes that take part."""
    array = np.asarray(value)
    if array.ndim == 0:
        return int(array)
    chosen = array if mask is None else array[mask]
    if (chosen != chosen[0]).any():
        raise CheckError(span, name, "an operand differs between the lanes of a warp", "make it uniform")
    return int(chosen[0])


def lanes(value: Any) -> np.ndarray:
    return np.broadcast_to(np.asarray(value), (LANES,))


def active(mask: np.ndarray | None) -> int:
    return LANES if mask is None else int(mask.sum())
