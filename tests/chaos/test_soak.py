"""The two-minute cut of benchmarks/soak.py: the whole server at capacity under everything its users do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mortice.models import store
from mortice.specs.errors import MorticeError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_two_minutes_at_capacity(tmp_path: Path) -> None:
    try:
        store.pull("smollm2", print)
    except MorticeError as error:
        pytest.skip(f"no SmolLM2 here: {error}")
    report = tmp_path / "soak.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--ci", "--output", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert report.exists(), done.stderr[-2000:]
    result = json.loads(report.read_text())
    assert result["problems"] == []
    assert done.returncode == 0
    assert sum(result["requests"].values()) > 50
    assert result["num_integrity_checks"] > 20
