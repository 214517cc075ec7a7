"""Clones of a machine with its own kernel: start and memory, mapped from one file against read from a stream each.

`python benchmarks/sandbox_microvm.py [--clones 4]`, under emulation where KVM runs no ordinary guests. Both ways take
their turns in one run; a clone's own snapshot is a stream, so the second way is restored from that.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from mortice.sandbox import Limits, Sandboxes, SandboxSpec
from mortice.sandbox.box import Box
from mortice.sandbox.kvm import probe_kvm

MIB = 1 << 20


def memory(pid: int) -> dict[str, float]:
    """MiB by kind, of one process: what it has alone, and its share of what several map (PSS)."""
    rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kinds = {row[0].rstrip(":"): int(row[1]) / 1024 for row in rows}
    return {
        "rss": kinds["Rss"],
        "pss": kinds["Pss"],
        "private": kinds["Private_Dirty"] + kinds["Private_Clean"],
    }


async def clones(boxes: Sandboxes, snapshot: str, count: int) -> tuple[list[Box], list[float]]:
    """Restored one after the other, and how long each took to its first answer, in ms."""
    made, times = [], []
    for _ in range(count):
        began = time.perf_counter()
        made.append(await boxes.restore(snapshot))
        await made[-1].run_cell("1 + 1", cell_id="first")
        times.append((time.perf_counter() - began) * 1e3)
    return made, times


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clones", type=int, default=4)
    parser.add_argument("--memory-mib", type=int, default=256)
    arguments = parser.parse_args()
    if not probe_kvm().hardware:
        os.environ["MORTICE_MICROVM"] = "emulated"
    spec = SandboxSpec(backend="microvm", limits=Limits(memory_bytes=arguments.memory_mib * MIB))
    with tempfile.TemporaryDirectory() as home:
        async with Sandboxes(Path(home)) as boxes:
            began = time.perf_counter()
            first = await boxes.create_box(spec)
            await first.run_cell("import json, random", cell_id="first")
            print(f"boot to first answer: {time.perf_counter() - began:.1f} s")
            began = time.perf_counter()
            template = await first.snapshot()
            print(f"snapshot with its memory apart: {(time.perf_counter() - began) * 1e3:.0f} ms")
            await first.destroy()
            clone = await boxes.restore(template)
            began = time.perf_counter()
            stream = await clone.snapshot()
            print(f"snapshot of a clone, one stream: {(time.perf_counter() - began) * 1e3:.0f} ms")
            await clone.destroy()
            print(f"| {arguments.clones} clones | first answer, median ms | RSS | PSS | private, MiB each |")
            print("| --- | ---: | ---: | ---: | ---: |")
            for name, snapshot in (("mapped from one file", template), ("each read from a stream", stream)):
                made, times = await clones(boxes, snapshot, arguments.clones)
                found = [memory(box.machine.pid) for box in made]
                mean = {kind: statistics.mean(one[kind] for one in found) for kind in found[0]}
                row = " | ".join(f"{mean[kind]:.0f}" for kind in ("rss", "pss", "private"))
                print(f"| {name} | {statistics.median(times):.0f} | {row} |")
                await asyncio.gather(*(box.destroy() for box in made))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


asyncio.run(main())
