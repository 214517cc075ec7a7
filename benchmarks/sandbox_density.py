"""Many sandboxes alive at once: memory of all, and whether each still answers.

`python benchmarks/sandbox_density.py [--count 200] [--parallel 4]`. Idle ones are parked, as they are in use.
"""

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

from mortice.sandbox import Limits, Sandboxes, SandboxSpec


def used_mib() -> float:
    """Memory of the machine that could not be had back."""
    values = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return (int(values["MemTotal"].split()[0]) - int(values["MemAvailable"].split()[0])) / 1024


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--parallel", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        async with Sandboxes(Path(home)) as boxes:
            first = await boxes.create(SandboxSpec(backend="gvisor", limits=Limits(memory_bytes=128 << 20)))
            await first.run_cell("n = 0", cell_id="a")
            before = used_mib()
            began = time.perf_counter()
            made = [first]
            while len(made) < arguments.count:
                outcomes = await first.fork(min(64, arguments.count - len(made)))
                made += [o.box for o in outcomes if o.box is not None]  # type: ignore[misc]
                assert all(o.error is None for o in outcomes), [o.error for o in outcomes if o.error][:3]
                print(
                    f"{len(made)} alive after {time.perf_counter() - began:.0f} s, {used_mib() - before:.0f} MiB",
                    flush=True,
                )
            for box in made:
                await box.park_if_quiet()
            charged = sum(box.machine.memory_bytes() or 0 for box in made) / 2**20
            began = time.perf_counter()
            limit = asyncio.Semaphore(arguments.parallel)

            async def ask(n: int) -> float:
                async with limit:
                    start = time.perf_counter()
                    result = await made[n].run_cell(f"n += {n}; n", cell_id="ask")
                    assert result.value == str(n), result
                    return time.perf_counter() - start

            times = sorted(await asyncio.gather(*(ask(n) for n in range(len(made)))))
            took = time.perf_counter() - began
            middle = times[len(times) // 2] * 1e3
            print(
                f"{len(made)} sandboxes: {used_mib() - before:.0f} MiB of the machine, {charged:.0f} MiB in their groups "
                f"({charged / len(made):.1f} each); all answered in {took:.2f} s, median {middle:.1f} ms "
                f"(load {os.getloadavg()[0]:.1f})"
            )


asyncio.run(main())
