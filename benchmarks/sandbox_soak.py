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
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mortice.obs.audit_verify import verify
from mortice.sandbox import Sandboxes, SandboxSpec


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


BARE = "a bare Python"


class Round:
    """What one round took, part by part, in ms; and the size of what was saved, in MiB."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._began = time.perf_counter()

    def ended(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] = (now - self._began) * 1e3
        self._began = now


async def soak(boxes: Sandboxes, minutes: float) -> tuple[list[float], list[Round], int]:
    """Resident MiB of this process after each round, the rounds, and how many cells ran."""
    spec = SandboxSpec(backend="gvisor")
    box = await boxes.create_box(spec)
    memory: list[float] = []
    rounds: list[Round] = []
    cells, total = 0, 0
    await box.run_cell("total = 0", cell_id="setup")
    deadline = time.monotonic() + minutes * 60
    while time.monotonic() < deadline:
        n, now = len(rounds), Round()
        for k in range(5):
            total += n + k
            result = await box.run_cell(f"total += {n + k}; print('x' * 2000); total", cell_id=f"r{n}-{k}")
            assert result.value == str(total), (result, total)
            cells += 1
        now.ended("cells")
        await box.write("/work/state", str(total).encode())
        assert (await box.exec(["cat", "/work/state"], cell_id=f"r{n}-cat")).stdout == str(total)
        now.ended("file and command")
        snapshot = await box.snapshot()
        now.ended("snapshot")
        now.parts["saved MiB"] = sum(f.size for f in boxes.snapshots.manifest(snapshot).files) / 2**20
        if n % 5 == 4:
            await box.destroy()
            box = await boxes.restore(snapshot)
            assert (await box.run_cell("total", cell_id=f"r{n}-after")).value == str(total)
            now.ended("restore")
        for old in boxes.snapshots.list()[:-2]:
            boxes.snapshots.remove(old.id)
        now.ended("old snapshots")
        other = await boxes.create_box(spec)
        await other.run_cell("1", cell_id="a")
        now.ended("another sandbox")
        await other.destroy()
        now.ended("its end")
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
        now.ended(BARE)
        rounds.append(now)
        memory.append(resident_mib())
    await box.destroy()
    return memory, rounds, cells


def compare(rounds: list[Round]) -> None:
    """Medians of each part in the first and the last tenth of the rounds; times also in bare Pythons of then, since others
    may work on the machine."""
    tenth = max(5, len(rounds) // 10)

    def median(part: str, some: list[Round]) -> float:
        return statistics.median(r.parts[part] for r in some if part in r.parts)

    first, last = rounds[:tenth], rounds[-tenth:]
    for part in dict.fromkeys(name for r in first for name in r.parts):
        then, now = median(part, first), median(part, last)
        unit = now / then / (median(BARE, last) / median(BARE, first))
        grown = "" if part == "saved MiB" else f"  in bare Pythons x {unit:.2f}"
        print(f"  {part:18} {then:8.1f} at first {now:8.1f} at last{grown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=240.0)
    arguments = parser.parse_args()
    before = set(glob.glob("/sys/fs/cgroup/*/mortice/b*"))

    async def work(home: Path) -> tuple[list[float], list[Round], int]:
        async with Sandboxes(home) as boxes:
            return await soak(boxes, arguments.minutes)

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        memory, rounds, cells = asyncio.run(work(home))
        left = [*(home / "boxes").iterdir(), *(home / "runsc").iterdir()]
        report = verify(home / "audit")
    groups = set(glob.glob("/sys/fs/cgroup/*/mortice/b*")) - before
    settled = statistics.median(memory[len(memory) // 10 : len(memory) // 10 + 5])
    grown = statistics.median(memory[-5:]) / settled - 1
    print(
        f"{len(rounds)} rounds, {cells} cells, {report.num_records} records in {arguments.minutes:g} minutes; resident "
        f"{settled:.1f} MiB, {grown:+.1%} at the end; left behind: {len(left)} files, {len(groups)} groups"
    )
    compare(rounds)
    if grown > 0.10 or left or groups or not report.ok:
        sys.exit(1)


main()
