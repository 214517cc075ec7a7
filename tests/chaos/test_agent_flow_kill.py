"""SIGKILL of a workflow's process beside its living sandbox: another process proves it, attaches and goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, pathlib, signal

def die_once(mark):
    if not pathlib.Path(mark).exists():
        pathlib.Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1

async def count(flow, mark):
    box = flow.sandbox()
    await box.run_python("total = 40")
    await box.run_python("total += 1; open('/work/log', 'a').write('x')")
    more = await flow.step(die_once, mark)
    ran = await box.run_python(f"total += {more}; total")
    return {"total": ran.text, "log": await box.read_file("log")}
"""


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_workflow_goes_on_with_its_sandbox(sandbox_home: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run(*args: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "mortice", *args]
        environment = os.environ | {"MORTICE_SANDBOX_HOME": str(sandbox_home)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)

    home = ["--home", str(tmp_path / "agents"), "--json"]
    given = json.dumps(str(tmp_path / "died"))
    first = run("agent", "workflow", "run", f"{program}:count", "--id", "w", "--input", given, *home)
    assert first.returncode == -signal.SIGKILL, first.stderr
    boxes = json.loads(run("sandbox", "ls", "--json").stdout)
    assert [box["state"] for box in boxes] == ["ready"]
    second = run("agent", "workflow", "resume", "w", *home)
    assert second.returncode == 0, second.stderr
    assert "journal, sandbox and audit log match" in second.stderr
    assert json.loads(second.stdout)["output"] == {"total": "42", "log": "x"}
    assert json.loads(run("sandbox", "ls", "--json").stdout) == []
