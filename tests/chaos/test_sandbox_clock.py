"""A supervisor in another time namespace, whose clocks of the running machine stand a day apart, is one like any other."""

import subprocess
import sys
from pathlib import Path

import pytest

from mortice.obs.audit_verify import verify
from mortice.sandbox import Sandboxes

VISIT = """
import asyncio, pathlib, sys, time
from mortice.sandbox import Sandboxes

async def visit():
    async with Sandboxes(pathlib.Path(sys.argv[1])) as boxes:
        assert [info.state for info in boxes.list()] == ["ready"]
        box = await boxes.attach("box")
        await box.run_cell("x += 1", cell_id="there", timeout_s=30)
        await box.snapshot()
        await box.close()
    print(time.monotonic())

asyncio.run(visit())
"""


@pytest.mark.parametrize("step_s", [86400, -3600])
async def test_a_step_of_the_clocks_in_a_time_namespace(sandbox_home: Path, step_s: int) -> None:
    """The wall clock has no namespace; its steps are those of `test_a_stepped_clock_changes_nothing`."""
    with open("/proc/uptime") as file:
        if float(file.read().split()[0]) + step_s < 0:
            pytest.skip("this machine has not run for so long that its clocks could be put back")
    apart = ["unshare", "--time", "--fork", f"--monotonic={step_s}", f"--boottime={step_s}"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode != 0:
        pytest.skip("no time namespaces here (util-linux 2.38 makes them)")
    async with Sandboxes(sandbox_home) as boxes:
        box = await boxes.create(name="box", keep=True)
        await box.run_cell("x = 1", cell_id="a")
        await box.close()
        visit = [*apart, sys.executable, "-c", VISIT, str(sandbox_home)]
        there = subprocess.run(visit, capture_output=True, text=True, timeout=60)
        assert there.returncode == 0, there.stderr
        again = await boxes.attach("box")
        assert (await again.run_cell("x", cell_id="b")).value == "2"
        await again.destroy()
    report = verify(sandbox_home / "audit")
    assert report.ok, report
