"""KV from one process to another: shared memory, TCP (plain, encrypted) and NIXL against memcpy; and what that costs
a compute loop.

    PYTHONPATH=src python benchmarks/kv_handover.py [--rounds 9] [--max-mib 256] [--out FILE]

A peer process owns the pools; this one reads and writes. Every round runs every method at every size, in an
order that turns, so a slow moment of the machine hits all alike; cells are medians over rounds. A transfer is
timed by its own result: from the call to the verified end, hops between threads included. memcpy is
ctypes.memmove of the same bytes between two touched private buffers of this process. Only ratios travel from
one machine to another.
"""

import argparse
import importlib.util
import multiprocessing
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from ctypes import memmove
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("UCX_NET_DEVICES", "lo")
os.environ.setdefault("NIXL_LOG_LEVEL", "FATAL")

import numpy as np

from mortice.specs.kv import ChecksumMode, KVDescriptor, KVLayout
from mortice.transport import hands, segment
from mortice.transport.base import KVTransport, Pool, TransferResult
from mortice.transport.choose import Kind, open_pool, open_transport
from mortice.transport.descriptor import block_ids, describe, describe_target
from mortice.transport.sealed import Encryption

SMOLLM2 = KVLayout(
    num_layers=30, planes=((3, 64), (3, 64)), block_size=16, dtype="bfloat16", model="smollm2"
)  # 368,640 bytes a block
SMALL = KVLayout(num_layers=16, planes=((2, 64),), block_size=16, dtype="bfloat16", model="small")  # 64 KiB
TOKEN = "benchmark"
KINDS: dict[str, tuple[Kind, Encryption]] = {
    "shm": ("shm", "auto"),
    "tcp": ("tcp", "off"),
    "tcp encrypted": ("tcp", "on"),
    "nixl": ("nixl", "auto"),
}
SIZES = [64 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20]


class Lane:
    """One kind of transport between this process and a peer process, with pools of `max_bytes`."""

    def __init__(self, name: str, layout: KVLayout, max_bytes: int, checksum: ChecksumMode = "off") -> None:
        kind, encrypt = KINDS[name]
        self.layout = layout
        self.num_blocks = max(1, max_bytes // layout.block_bytes)
        self.order = np.random.default_rng(0).permutation(self.num_blocks).tolist()
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(
            target=own, args=(name, layout, self.num_blocks, checksum, theirs), daemon=True
        )
        self.process.start()
        self.pipe = ours
        self.pool: Pool = open_pool(kind, layout, self.num_blocks, prefix="mortice-bench", checksum=checksum)
        self.pool.blocks[:] = 2
        self.transport: KVTransport = open_transport(kind, self.pool, token=TOKEN, encrypt=encrypt)
        self.sources: dict[tuple[int, bool], KVDescriptor] = {}

    def move(self, verb: str, num_bytes: int, paged: bool) -> float:
        """GB/s of one transfer."""
        count = max(1, min(self.num_blocks, num_bytes // self.layout.block_bytes))
        remote = self.remote(verb, count, paged)
        local = self.order[-count:] if paged else list(range(count))
        ended: list[TransferResult] = []
        signal = threading.Event()

        def done(result: TransferResult) -> None:
            ended.append(result)
            signal.set()

        if verb == "read":
            self.transport.read(remote, 0, local, done)
        else:
            self.transport.write(local, remote, 0, done)
        signal.wait()
        if ended[0].error is not None:
            raise RuntimeError(ended[0].error)
        return ended[0].num_bytes / ended[0].seconds / 1e9

    def map(self, num_bytes: int) -> float:
        """GB/s of the same blocks made readable where they lie: window, ids, and the check after the first read."""
        count = max(1, min(self.num_blocks, num_bytes // self.layout.block_bytes))
        source = self.remote("read", count, True)
        begun = time.perf_counter()
        window = self.pool.space.open(source.pool)
        ids = block_ids([ref.block_id for ref in source.blocks], window.num_blocks, "described")
        expected = np.array([ref.generation for ref in source.blocks], np.uint64)
        table = [window.first + block for block in ids.tolist()]
        intact = (window.generations[ids] == expected).all()
        seconds = time.perf_counter() - begun
        if not intact or (self.pool.space.blocks[table[-1]] != 1).any():
            raise RuntimeError("what is read in place is not what was lent")
        return count * self.layout.block_bytes / seconds / 1e9

    def remote(self, verb: str, count: int, paged: bool) -> KVDescriptor:
        key = (count if verb == "read" else -count, paged)
        if key not in self.sources:
            self.pipe.send((verb, self.order[:count] if paged else list(range(count))))
            self.sources[key] = self.pipe.recv()
        return self.sources[key]

    def close(self) -> None:
        self.transport.close()
        self.pool.close()
        self.pipe.send(None)
        self.process.join()


def own(name: str, layout: KVLayout, num_blocks: int, checksum: ChecksumMode, pipe: Connection) -> None:
    """The peer: writes descriptors on demand."""
    kind, encrypt = KINDS[name]
    pool = open_pool(kind, layout, num_blocks, prefix="mortice-bench", checksum=checksum)
    pool.blocks[:] = 1
    transport = open_transport(kind, pool, token=TOKEN, encrypt=encrypt)
    while (ask := pipe.recv()) is not None:
        verb, ids = ask
        pipe.send((describe if verb == "read" else describe_target)(pool, "bench", ids, 0))
    transport.close()
    pool.close()


def memcpy(source: np.ndarray, target: np.ndarray, num_bytes: int) -> float:
    begun = time.perf_counter()
    memmove(target.ctypes.data, source.ctypes.data, num_bytes)
    return num_bytes / (time.perf_counter() - begun) / 1e9


def rates(rounds: int, sizes: list[int], layout: KVLayout, kinds: list[str]) -> dict[tuple[str, int], float]:
    """Median GB/s by (method, size)."""
    lanes = {kind: Lane(kind, layout, sizes[-1]) for kind in kinds}
    source, target = np.ones(sizes[-1], np.uint8), np.ones(sizes[-1], np.uint8)
    methods: dict[str, Callable[[int], float]] = {"memcpy": lambda size: memcpy(source, target, size)}
    for kind, lane in lanes.items():
        for verb in ("read", "write"):
            for paged in (False, True):
                name = f"{kind} {verb}, {'paged' if paged else 'contiguous'}"
                methods[name] = lambda size, lane=lane, verb=verb, paged=paged: lane.move(verb, size, paged)
                # type: ignore[misc]
        if lane.pool.space is not None:
            methods["shm, read in place"] = lane.map
    found: dict[tuple[str, int], list[float]] = {(name, size): [] for name in methods for size in sizes}
    names = list(methods)
    for turn in range(rounds + 1):  # the first round touches all memory and is thrown away
        for size in sizes:
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                rate = methods[name](round_down(size, layout))
                if turn:
                    found[name, size].append(rate)
    for lane in lanes.values():
        lane.close()
    return {key: statistics.median(values) for key, values in found.items()}


def round_down(size: int, layout: KVLayout) -> int:
    """The same whole blocks for every method."""
    return max(1, size // layout.block_bytes) * layout.block_bytes


def checksum_rates(rounds: int, size: int) -> dict[str, float]:
    """Median GB/s of a paged shm read of `size` bytes under each checksum mode, interleaved."""
    modes: tuple[ChecksumMode, ...] = ("off", "sampled", "full")
    lanes = {mode: Lane("shm", SMOLLM2, size, mode) for mode in modes}
    found: dict[str, list[float]] = {mode: [] for mode in modes}
    for turn in range(rounds + 1):
        for mode, lane in lanes.items():
            rate = lane.move("read", size, True)
            if turn:
                found[mode].append(rate)
    for lane in lanes.values():
        lane.close()
    return {mode: statistics.median(values) for mode, values in found.items()}


def step_times(rounds: int, steps: int, kinds: list[str]) -> dict[str, tuple[float, float, float]]:
    """(median, 95th percentile, longest) ms of a compute step, alone and while 64 MiB transfers run back to
    back.

    A step is a chain of matrix-vector products with some Python between them, as a small decode step is.
    """
    weights = [np.ones((576, 1536), np.float32) for _ in range(30)]
    vector = np.ones(576, np.float32)

    def step() -> float:
        begun = time.perf_counter()
        for matrix in weights:
            out = vector @ matrix
            matrix @ out
            sum(range(200))
        return (time.perf_counter() - begun) * 1e3

    nice = hands.NICENESS
    found: dict[str, list[float]] = {}
    conditions: dict[str, Lane | None] = {"alone": None}
    for kind in kinds:
        conditions[f"{kind} read"] = Lane(kind, SMOLLM2, 64 << 20)
    hands.NICENESS = 0
    conditions["shm read, priority not lowered"] = Lane("shm", SMOLLM2, 64 << 20)
    for turn in range(rounds + 1):
        for name, lane in conditions.items():
            stop = threading.Event()
            mover = threading.Thread(target=keep_moving, args=(lane, stop))
            mover.start()
            times = [step() for _ in range(steps)]
            stop.set()
            mover.join()
            if turn:
                found.setdefault(name, []).extend(times)
    hands.NICENESS = nice
    for lane in conditions.values():
        if lane is not None:
            lane.close()
    return {
        name: (statistics.median(times), float(np.percentile(times, 95)), max(times))
        for name, times in found.items()
    }


def keep_moving(lane: Lane | None, stop: threading.Event) -> None:
    while lane is not None and not stop.is_set():
        lane.move("read", 64 << 20, True)


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""]


def size_name(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--max-mib", type=int, default=256, help="largest transfer")
    parser.add_argument("--out", help="file for the tables; default: standard output")
    options = parser.parse_args()
    sizes = [size for size in SIZES if size <= options.max_mib << 20]
    kinds = ["shm"] if segment.available() else []
    kinds += ["tcp", "tcp encrypted"]
    if importlib.util.find_spec("nixl_cu13"):
        kinds.append("nixl")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    when = f"{datetime.now(UTC):%Y-%m-%d}, load {os.getloadavg()[0]:.2f} before"
    lines = [
        f"{machine}, Python {platform.python_version()}, {when}; medians of {options.rounds} rounds.",
        "",
    ]
    for layout in (SMOLLM2, SMALL):
        found = rates(options.rounds, sizes, layout, kinds)
        lines += [f"Blocks of {layout.block_bytes:,} bytes; GB/s (ratio to memcpy)", ""]
        rows = [
            [name, *(f"{found[name, s]:.2f} ({found[name, s] / found['memcpy', s]:.2f})" for s in sizes)]
            for name in dict.fromkeys(name for name, _ in found)
        ]
        lines += table(["method", *map(size_name, sizes)], rows)
    if "shm" in kinds:
        size = min(16 << 20, sizes[-1])
        rows = [[mode, f"{rate:.2f}"] for mode, rate in checksum_rates(options.rounds, size).items()]
        lines += [f"shm read of {size_name(size)}, paged, by checksum", ""]
        lines += table(["checksum", "GB/s"], rows)
        rows = [
            [name, *(f"{ms:.2f}" for ms in times)]
            for name, times in step_times(options.rounds, 60, kinds).items()
        ]
        lines += ["A compute step while transfers run", ""]
        lines += table(["meanwhile", "median ms", "95 % ms", "longest ms"], rows)
    text = "\n".join(lines)
    if options.out:
        with open(options.out, "w") as file:
            file.write(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
