"""What runs are said to have used is what the host was charged for."""

from collections.abc import Awaitable, Callable

import pytest

from mortice.obs.audit_verify import records
from mortice.sandbox import Sandboxes, cgroups
from mortice.sandbox.box import Box
from mortice.sandbox.meter import CpuMeter

Make = Callable[..., Awaitable[Box]]
BURN = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"


@pytest.mark.slow
async def test_the_processor_seconds_of_all_runs_are_those_of_the_control_group(
    make: Make, boxes: Sandboxes
) -> None:
    """Within 5 %, on every back end, though gVisor's own clocks of processes count by ticks."""
    box = await make()
    await box.ping()
    before = cgroups.cpu_seconds(box.record.id)
    said = []
    for n in range(3):
        cell = await box.run_cell(BURN.format(seconds=1.0), cell_id=f"cell{n}")
        command = await box.exec(
            ["python3", "-I", "-S", "-c", BURN.format(seconds=1.0)], cell_id=f"command{n}"
        )
        said += [cell.cpu_s, command.cpu_s]
    after = cgroups.cpu_seconds(box.record.id)
    assert before is not None
    assert after is not None
    assert min(said) > 0.5
    assert sum(said) == pytest.approx(after - before, rel=0.05), said
    logged = [r["cpu_s"] for r in records(boxes.home.audit, box.record.id) if r["kind"] == "exit"]
    assert logged == said


def test_runs_side_by_side_share_and_what_lies_between_belongs_to_none() -> None:
    used = iter([10.0, 11.0, 13.0, 13.5, 20.0, 21.0])
    meter = CpuMeter(lambda: next(used))
    meter.begin("a")  # at 10
    meter.begin("b")  # at 11
    assert meter.end("a") == 1.0 + 1.0
    assert meter.end("b") == 1.0 + 0.5
    meter.begin("c")  # at 20
    assert meter.end("c") == 1.0
    unknown = CpuMeter(lambda: None)
    unknown.begin("a")
    assert unknown.end("a") is None


@pytest.mark.parametrize("backend", ["gvisor"], indirect=True)
async def test_bytes_are_counted_as_they_are(make: Make, boxes: Sandboxes) -> None:
    box = await make()
    cell = await box.run_cell("import sys; print('x' * 99_999); print('ä', file=sys.stderr)", cell_id="a")
    command = await box.exec(
        ["sh", "-c", "head -c 3000000 /dev/zero; printf 12345 >&2"], cell_id="b", output_cap=1024
    )
    assert [(r.stdout_bytes, r.stderr_bytes) for r in (cell, command)] == [(100_000, 3), (3_000_000, 5)]
    assert len(command.stdout) < 2048
    exits = [r for r in records(boxes.home.audit, box.record.id) if r["kind"] == "exit"]
    assert [(r["stdout_bytes"], r["stderr_bytes"]) for r in exits] == [(100_000, 3), (3_000_000, 5)]
    assert cell.wall_s > 0
    assert cell.cpu_s >= 0
