"""Hours of one sandbox's life and many short ones beside it: does anything grow, leak or get slower?

`python benchmarks/sandbox_soak.py --minutes 240`. One sandbox runs cells, commands, files and snapshots and is restored from
its own snapshot now and then; others come and go. Ends with 1 if a result is wrong, memory grew by more than a tenth after
the first tenth, or a process, control group or file stayed behind.
"""

import argparse
import asyncio
import glob
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mortice.obs.audit_verify import verify
from mortice.sandbox import Sandboxes, SandboxSpec


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def soak(boxes: Sandboxes, minutes: float) -> tuple[list[float], list[float], int]:
    """Resident MiB of this process and seconds of each round, and how many cells ran."""
    spec = SandboxSpec(backend="gvisor")
    box = await boxes.create_box(spec)
    memory, times, cells, total = [], [], 0, 0
    await box.run_cell("total = 0", cell_id="setup")
    deadline = time.monotonic() + minutes * 60
    while time.monotonic() < deadline:
        began = time.perf_counter()
        n = len(times)
        for k in range(5):
            total += n + k
            result = await box.run_cell(f"total += {n + k}; print('x' * 2000); total", cell_id=f"r{n}-{k}")
            assert result.value == str(total), (result, total)
            cells += 1
        await box.write("/work/state", str(total).encode())
        assert (await box.exec(["cat", "/work/state"], cell_id=f"r{n}-cat")).stdout == str(total)
        snapshot = await box.snapshot()
        if n % 5 == 4:
            await box.destroy()
            box = await boxes.restore(snapshot)
            assert (await box.run_cell("total", cell_id=f"r{n}-after")).value == str(total)
        for old in boxes.snapshots.list()[:-2]:
            boxes.snapshots.remove(old.id)
        other = await boxes.create_box(spec)
        await other.run_cell("1", cell_id="a")
        await other.destroy()
        times.append(time.perf_counter() - began)
        memory.append(resident_mib())
    await box.destroy()
    return memory, times, cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=240.0)
    arguments = parser.parse_args()
    before = set(glob.glob("/sys/fs/cgroup/*/mortice/b*"))

    async def work(home: Path) -> tuple[list[float], list[float], int]:
        async with Sandboxes(home) as boxes:
            return await soak(boxes, arguments.minutes)

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        memory, times, cells = asyncio.run(work(home))
        left = [*(home / "boxes").iterdir(), *(home / "runsc").iterdir()]
        report = verify(home / "audit")
    groups = set(glob.glob("/sys/fs/cgroup/*/mortice/b*")) - before
    settled = statistics.median(memory[len(memory) // 10 : len(memory) // 10 + 5])
    grown = statistics.median(memory[-5:]) / settled - 1
    tenth = max(1, len(times) // 10)
    print(
        f"{len(times)} rounds, {cells} cells, {report.num_records} records in {arguments.minutes:g} minutes; resident "
        f"{settled:.1f} MiB, {grown:+.1%} at the end; a round {statistics.median(times[:tenth]):.2f} s at first, "
        f"{statistics.median(times[-tenth:]):.2f} s at last; left behind: {len(left)} files, {len(groups)} groups"
    )
    if grown > 0.10 or left or groups or not report.ok:
        sys.exit(1)


main()
