"""How long a sandbox takes: request to first answer of the guest's agent, on every back end that works here.

`python benchmarks/sandbox_latency.py [--rounds 10]`. A bare `python3 -I -S -c pass` on the host, timed between the rounds,
is the unit of the ratios: the machine is shared. Prints a table for docs/performance.md.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from mortice.sandbox import Sandboxes, SandboxSpec, WarmPool
from mortice.sandbox.box import Box


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await call()
    return (time.perf_counter() - began) * 1e3


def bare_python() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
    return (time.perf_counter() - began) * 1e3


class Table:
    """Rows of min, median and 95th percentile in ms."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def add(self, name: str, ms: float) -> None:
        self.times.setdefault(name, []).append(ms)

    def print(self, unit: float) -> None:
        print(
            "| what | min | median | p95 | ratio of medians | n |\n| --- | ---: | ---: | ---: | ---: | ---: |"
        )
        for name, values in self.times.items():
            values.sort()
            median = statistics.median(values)
            high = values[min(len(values) - 1, int(len(values) * 0.95))]
            print(
                f"| {name} | {values[0]:.2f} | {median:.2f} | {high:.2f} | {median / unit:.2f} | {len(values)} |"
            )


async def measure(boxes: Sandboxes, backend: str, rounds: int, table: Table, units: list[float]) -> None:
    spec = SandboxSpec(backend=backend)  # type: ignore[arg-type]

    async def first_answer(make: Callable[[], Awaitable[Box]], name: str) -> None:
        began = time.perf_counter()
        box = await make()
        await box.ping()
        table.add(f"{backend}: {name}", (time.perf_counter() - began) * 1e3)
        await box.destroy()

    await first_answer(lambda: boxes.create_box(spec), "cold")
    table.times.clear() if len(table.times) == 1 else table.times.pop(
        f"{backend}: cold"
    )  # the sink starts with the first
    for _ in range(rounds):
        units.append(bare_python())
        await first_answer(lambda: boxes.create_box(spec), "cold")
    box = await boxes.create_box(spec)
    print(
        f"{backend}: a fresh sandbox with a Python interpreter holds {(box.machine.memory_bytes() or 0) / 2**20:.1f} MiB"
    )
    for n in range(5 * rounds):
        table.add(f"{backend}: cell", await timed(lambda n=n: box.run_cell("1 + 1", cell_id=f"c{n}")))  # type: ignore[misc]
        table.add(
            f"{backend}: exec /bin/true", await timed(lambda n=n: box.exec(["/bin/true"], cell_id=f"e{n}"))
        )  # type: ignore[misc]
    if box.backend.can_snapshot:
        for _ in range(rounds):
            units.append(bare_python())
            table.add(f"{backend}: checkpoint, published", await timed(box.snapshot))
        template = await (await boxes.create_box(spec)).snapshot()
        for _ in range(rounds):
            units.append(bare_python())
            await first_answer(lambda: boxes.restore(template), "restore from template")
        for _ in range(max(3, rounds // 3)):
            table.add(f"{backend}: fork of 8, all answered", await fork_of_eight(box))
            if backend == "gvisor":
                await boxes.make_ready(8, spec)
                table.add(f"{backend}: the same, kernels made ready", await fork_of_eight(box))
        async with WarmPool(boxes, spec, size=rounds) as pool:
            for _ in range(rounds):
                began = time.perf_counter()
                leased = await pool.lease()
                await leased.ping()
                table.add(f"{backend}: warm lease", (time.perf_counter() - began) * 1e3)
    await box.destroy()


async def fork_of_eight(box: Box) -> float:
    """Milliseconds until each of eight clones has run a cell."""
    began = time.perf_counter()
    forks = [o.box for o in await box.fork(8) if o.box is not None]
    await asyncio.gather(*(f.run_cell("1 + 1", cell_id="x") for f in forks))
    took_ms = (time.perf_counter() - began) * 1e3
    assert len(forks) == 8
    await asyncio.gather(*(f.destroy() for f in forks))
    return took_ms


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    table, units = Table(), [bare_python()]
    with tempfile.TemporaryDirectory() as home:
        async with Sandboxes(Path(home)) as boxes:
            for probe in await boxes.probe():
                if probe.works and probe.backend == "wasm":
                    pure = await boxes.create(SandboxSpec(backend="wasm"))
                    for n in range(arguments.rounds):
                        table.add(
                            "wasm: cell",
                            await timed(lambda n=n, pure=pure: pure.run_cell("1 + 1", cell_id=str(n))),
                        )  # type: ignore[misc]
                elif probe.works:
                    await measure(boxes, probe.backend, arguments.rounds, table, units)
    unit = statistics.median(units)
    print(
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; bare python3 -I -S -c pass: {unit:.1f} ms\n"
    )
    table.print(unit)


asyncio.run(main())
