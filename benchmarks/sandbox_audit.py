"""The audit chain: records a second that are on the disk, and a guest's events with a reader that stalls.

`python benchmarks/sandbox_audit.py [--records 50000] [--events 5000]`
"""

import argparse
import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path

from mortice.obs.audit import AuditLog
from mortice.obs.audit_verify import records, verify
from mortice.sandbox import Sandboxes, SandboxSpec


def throughput(folder: Path, count: int) -> None:
    with AuditLog(folder) as log:
        began = time.perf_counter()
        waiting = [
            log.append("exec", chain="b1", argv=["python3", "-c", "pass"], cell_id=str(n))
            for n in range(count)
        ]
        for future in waiting:
            future.result()
        singly = count / (time.perf_counter() - began)
        began = time.perf_counter()
        groups = [
            log.append_all(
                "b2",
                [{"kind": "event", "what": "open", "path": f"/work/{n}"} for n in range(start, start + 256)],
            )
            for start in range(0, count, 256)
        ]
        for future in groups:
            future.result()
        grouped = len(groups) * 256 / (time.perf_counter() - began)
        began = time.perf_counter()
        for n in range(100):
            log.append("intent", n=n).result()
        alone = (time.perf_counter() - began) * 10
    began = time.perf_counter()
    report = verify(folder)
    assert report.ok
    print(
        f"durable records/s: {singly:,.0f} one by one, {grouped:,.0f} in groups of 256; {alone:.1f} ms for one that waits"
    )
    print(f"verified {report.num_records:,} records in {time.perf_counter() - began:.2f} s")


async def stalled(home: Path, count: int) -> None:
    """Stop the sink while a guest opens files for writing, let it go on, and look for every one of them."""
    async with Sandboxes(home) as boxes:
        box = await boxes.create(SandboxSpec(backend="gvisor"))
        sink = next(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_sink(p, home))
        os.kill(sink, signal.SIGSTOP)
        code = (
            f"for n in range({count}): open(f'/work/f', 'a').close(); open(f'/work/g{{n % 7}}', 'w').close()"
        )
        running = asyncio.create_task(box.run_cell(code, cell_id="a", timeout_s=120))
        await asyncio.sleep(3)
        held = not running.done()
        os.kill(sink, signal.SIGCONT)
        result = await running
        assert result.ok, result
        chain = box.record.id
        await box.destroy()
        for _ in range(200):
            seen = [r for r in records(home / "audit", chain) if r["kind"] == "event" and r["what"] == "open"]
            if len(seen) >= 2 * count:
                break
            await asyncio.sleep(0.1)
    gaps = sum(r.num_gaps for r in verify(home / "audit").chains)
    waited = "waited" if held else "did not wait"
    print(f"stalled reader: guest {waited}; {len(seen):,} of {2 * count:,} opens recorded, {gaps} gaps")


def _is_sink(process: Path, home: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"mortice.sandbox.sink" in words and os.fsencode(home) in words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--events", type=int, default=5_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        throughput(Path(folder) / "log", arguments.records)
        asyncio.run(stalled(Path(folder) / "home", arguments.events))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


main()
